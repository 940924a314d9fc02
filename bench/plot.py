"""The roofline as a picture: how fast each contestant is, against what its arithmetic intensity allows."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from moela.bench.report import Case, Result

COLORS = ("#0b6e99", "#d9730d", "#6940a5", "#ad1a72", "#0f7b6c", "#8d6e63", "#dfab01")  # apart in grey too
MARKERS = "osD^vPX*"


def plot(results: Sequence[Result], path: Path, title: str, subtitle: str) -> None:
    """Write a PNG: GFLOP/s against flops per byte, both logarithmic, below the two roofs that were measured.

    A colour is a contestant, a marker a layer; all contestants of a case lie above each other. The roofs are
    those of the rounds with the highest rates.
    """
    figure, axes = plt.subplots(figsize=(9, 5.6), dpi=150, layout="constrained")
    names = list(dict.fromkeys(r.contestant for r in results))
    layers = list(dict.fromkeys(r.case.layer for r in results))
    color = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    marker = {layer: MARKERS[i % len(MARKERS)] for i, layer in enumerate(layers)}
    for r in results:
        axes.plot(
            _intensity(r.case),
            r.gflops_per_s,
            marker[r.case.layer],
            color=color[r.contestant],
            markersize=6 if r.is_baseline else 9,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3 if r.is_baseline else 4,
        )
    _limits(axes, results)
    _roofs(axes, results)
    _tokens(axes, results)
    handles = [Line2D([], [], color=color[n], marker="o", linestyle="", label=n) for n in names]
    if len(layers) > 1:
        handles += [Line2D([], [], color="#777777", marker=marker[x], linestyle="", label=x) for x in layers]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)
    axes.set_xlabel("arithmetic intensity of the algorithm, flop per byte")
    axes.set_ylabel("GFLOP/s of the algorithm")
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    figure.savefig(path, format="png")
    plt.close(figure)


def _intensity(case: Case) -> float:
    return case.flops / case.bytes


def _limits(axes: plt.Axes, results: Sequence[Result]) -> None:
    """Room for both roofs and their crossing."""
    read, peak = _peaks(results)
    x = [*(_intensity(r.case) for r in results), peak / read]
    y = [*(r.gflops_per_s for r in results), peak]
    axes.set(xscale="log", yscale="log", xlim=(min(x) / 2, max(x) * 2), ylim=(min(y) / 2, max(y) * 2.2))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(axis) < 2.5 else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
    axes.grid(which="major", color="#e5e5e5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _decades(axis: matplotlib.axis.Axis) -> float:
    low, high = axis.get_view_interval()
    return math.log10(high / low)


def _peaks(results: Sequence[Result]) -> tuple[float, float]:
    return max(r.roof_gbytes_per_s for r in results), max(r.roof_gflops_per_s for r in results)


def _roofs(axes: plt.Axes, results: Sequence[Result]) -> None:
    read, peak = _peaks(results)
    low, high = axes.get_xlim()
    ridge = peak / read
    axes.plot([low, ridge, high], [low * read, peak, peak], color="#333333", linewidth=1.5, zorder=2)
    style = {"color": "#333333", "fontsize": 9}
    axes.text(high, peak * 1.06, f"multiply-add {peak:.0f} GFLOP/s ", ha="right", va="bottom", **style)
    x = (low * ridge) ** 0.5
    axes.text(
        x,
        x * read * 1.1,
        f"DRAM read {read:.1f} GB/s",
        ha="center",
        va="bottom",
        rotation=math.degrees(math.atan(read)),  # in data, whose logarithms are drawn
        rotation_mode="anchor",
        transform_rotates_text=True,
        **style,
    )


def _tokens(axes: plt.Axes, results: Sequence[Result]) -> None:
    """M at the foot of each column of points, once where the columns of several layers nearly coincide."""
    columns: dict[int, list[float]] = {}
    for r in results:
        if r.case.tokens:
            columns.setdefault(r.case.tokens, []).append(_intensity(r.case))
    for M, x in columns.items():
        middle = (min(x) * max(x)) ** 0.5
        axes.annotate(
            f"M={M}",
            (middle, 0),
            (0, 5),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#777777",
        )
