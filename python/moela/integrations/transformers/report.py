"""What `moela.patch` did to a model, layer by layer."""

from collections import Counter
from dataclasses import dataclass

PATCHED, ALREADY, LEFT = "patched", "already", "left"
_HEADINGS = {PATCHED: "on moela now", ALREADY: "already on moela", LEFT: "left as it was"}


@dataclass(frozen=True)
class Entry:
    """One layer.

    name: of the module, as `named_modules` has it.
    kind: experts, router, linear or mla.
    layer: the module's class.
    state: patched, already or left.
    detail: for the first two the op and the backend that run it; else why it was left.
    """

    name: str
    kind: str
    layer: str
    state: str
    detail: str


@dataclass(frozen=True)
class PatchReport:
    """The layers that `moela.patch` looked at; `str()` is a table with a line per class and detail."""

    entries: tuple[Entry, ...]

    def count(self, state: str, kind: str | None = None) -> int:
        return sum(e.state == state and kind in (None, e.kind) for e in self.entries)

    def __str__(self) -> str:
        rows = Counter((e.state, e.kind, f"{e.layer}", e.detail) for e in self.entries)
        width = max((len(layer) for _, _, layer, _ in rows), default=0)
        lines = []
        for state, heading in _HEADINGS.items():
            if self.count(state):
                lines.append(f"{heading}:")
            lines += [
                f"  {kind:<8}{n:>5} {layer:<{width}}  {detail}"
                for (s, kind, layer, detail), n in rows.items()
                if s == state
            ]
        return "\n".join(["moela.patch", *lines])
