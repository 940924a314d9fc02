"""The demo as a picture: tokens per second of each contestant, and what the memory of this machine allows."""

from pathlib import Path

from moela.bench.demo_story import MINE, Story
from moela.bench.plot import COLORS, plt
from moela.bench.timer import Timing


def plot(story: Story, path: Path, subtitle: str) -> None:
    """Write a PNG: bars of medians with p10 .. p90, and lines at what reading the weights allows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.9 + 0.55 * len(story.entries)), dpi=150)
    names = list(story.entries)
    _bars(left, [(story.entries[name].prefill, story.prompt_tokens) for name in names], names)
    _bars(right, [(story.entries[name].decode, 1) for name in names], names)
    right.set_yticklabels([])
    for y, name in enumerate(names):
        limit = 1 / story.roofline.time_floor(0, story.entries[name].bytes_per_token)
        right.plot([limit, limit], [y - 0.42, y + 0.42], color="#333333", linewidth=1.5)
        if name == MINE:
            right.text(limit, y - 0.46, "DRAM allows", ha="center", va="bottom", fontsize=8, color="#333333")
    left.set_title(f"prefill of {story.prompt_tokens} tokens", loc="left", fontsize=10)
    right.set_title("decode", loc="left", fontsize=10, pad=14)
    figure.suptitle(
        "DeepSeek-V3's layers on a CPU, tokens/s", x=0.01, ha="left", fontsize=13, fontweight="bold"
    )
    figure.text(0.01, 0.01, subtitle, fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, format="png")
    plt.close(figure)


def _bars(axes: "plt.Axes", samples: list[tuple[Timing, int]], names: list[str]) -> None:
    """Tokens per second, the first name on top."""
    for y, (timing, tokens) in enumerate(samples):
        low, middle, high = (tokens / seconds for seconds in (timing.p90, timing.median, timing.p10))
        color = COLORS[0] if names[y] == MINE else "#b8c4cc"
        axes.barh(y, middle, 0.62, xerr=[[middle - low], [high - middle]], color=color, ecolor="#777777")
        ink = "white" if names[y] == MINE else "#222222"
        axes.text(0, y, f" {middle:.3g}", va="center", fontsize=9, color=ink)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
