"""The demo as a picture: tokens per second of each contestant, and what the memory of this machine allows."""

from pathlib import Path

from moela.bench.demo_race import SHORT
from moela.bench.demo_story import MINE, Story
from moela.bench.plot import COLORS, plt
from moela.bench.timer import Timing


def plot(story: Story, path: Path, subtitle: str) -> None:
    """Write a PNG: bars of medians with p10 .. p90, and lines at what reading the weights allows."""
    names, P = list(story.entries), story.prompt_tokens
    titles = (f"prompt of {P} tokens", f"new tokens, after {min(SHORT, P)}", f"new tokens, after {P}")
    figure, panels = plt.subplots(1, 3, figsize=(11, 1.3 + 0.5 * len(names)), dpi=150, layout="constrained")
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        _bars(axes, [story.entries[name].times[i] for name in names], P if i == 0 else 1, names)
        axes.set_title(title, loc="left", fontsize=10)
        if i > 0:
            axes.set_yticklabels([])
            _floors(axes, story)
    title = "DeepSeek-V3's layers on a CPU, tokens/s"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    foot = f"lines: what reading the weights from memory allows.  {subtitle}"
    figure.supxlabel(foot, fontsize=8, x=0.01, ha="left", color="#555555")
    figure.savefig(path, format="png")
    plt.close(figure)


def _floors(axes: "plt.Axes", story: Story) -> None:
    for y, entry in enumerate(story.entries.values()):
        limit = 1 / story.roofline.time_floor(0, entry.bytes_per_token)
        axes.plot([limit, limit], [y - 0.4, y + 0.4], color="#333333", linewidth=1.5)


def _bars(axes: "plt.Axes", timings: list[Timing], tokens: int, names: list[str]) -> None:
    """Tokens per second, the first name on top."""
    for y, timing in enumerate(timings):
        low, middle, high = (tokens / seconds for seconds in (timing.p90, timing.median, timing.p10))
        color = COLORS[0] if names[y] == MINE else "#b8c4cc"
        axes.barh(y, middle, 0.62, xerr=[[middle - low], [high - middle]], color=color, ecolor="#777777")
        ink = "white" if names[y] == MINE else "#222222"
        axes.text(0, y, f" {middle:.3g}", va="center", fontsize=9, color=ink)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
