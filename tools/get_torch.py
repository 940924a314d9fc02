"""Make sure that this environment has a torch that moela supports: the one there, else a known good one.

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


def main(wanted: str = "") -> int:
    have = installed()
    if not wanted and have is not None and have >= OLDEST:
        return 0
    if not wanted and have is not None:
        print(
            f"moela: torch {have[0]}.{have[1]} is older than {OLDEST[0]}.{OLDEST[1]}; installing {KNOWN_GOOD}"
        )
    return subprocess.call([sys.executable, "-m", "pip", "install", "-q", wanted or KNOWN_GOOD])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
