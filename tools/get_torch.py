"""Make sure that this environment has a torch that moela supports: the one there, else a known good one.

Where pip has no known good one (a newer Python, a mirror, a constraint), the newest that it has.

python tools/get_torch.py [REQUIREMENT]
"""

import importlib.metadata
import subprocess
import sys

KNOWN_GOOD = "torch==2.13.0"
OLDEST = (2, 11)


def installed() -> tuple[int, int] | None:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def install(requirement: str) -> int:
    return subprocess.call([sys.executable, "-m", "pip", "install", "-q", requirement])


def main(wanted: str = "") -> int:
    have = installed()
    if not wanted and have is not None and have >= OLDEST:
        return 0
    if not wanted and have is not None:
        print(
            f"moela: torch {have[0]}.{have[1]} is older than {OLDEST[0]}.{OLDEST[1]}; installing {KNOWN_GOOD}"
        )
    if wanted:
        return install(wanted)
    if install(KNOWN_GOOD) == 0:
        return 0
    any_supported = f"torch>={OLDEST[0]}.{OLDEST[1]}"
    print(f"moela: pip has no {KNOWN_GOOD}; trying {any_supported}")
    return install(any_supported)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
