"""What the demo shows: bars while it works, then the story as lines and tables."""

import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moela import backends
from moela.bench.commands import REFRESH_SECONDS, describe
from moela.bench.demo_check import agreeing
from moela.bench.demo_profile import Part
from moela.bench.demo_race import SHORT
from moela.bench.demo_story import MINE, REFERENCE, Story
from moela.bench.report import Ratio
from moela.bench.roofline import Roofline
from moela.bench.tables import LOOK
from moela.bench.timer import Timing
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:  # it is there if transformers is
    from moela.integrations.transformers.report import PatchReport

Advance = Callable[[], None]
# (what is done, number of steps) -> called after each step
Phase = Callable[[str, int], Advance]

LEFT = "left"  # of a layer in the report of moela.patch
BAR_CELLS = 20
_TIE = "\N{NO-BREAK SPACE}"
NOTES = (
    "Medians (p10 .. p90); new tokens one by one, with the cache. GB: added to the process at its peak.",
    '"moela is 2.00x": twice as fast as this row in the same rounds; "~": no difference, p10 .. p90 overlap.',
)


@contextmanager
def phases() -> Iterator[Phase]:
    """A bar per phase on a terminal, nothing elsewhere. They have no thread: that would take CPU time."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bars:

        def phase(what: str, total: int) -> Advance:
            task = bars.add_task(f"{what:<32}", total=total)
            bars.refresh()
            drawn = done = 0

            def advance() -> None:
                nonlocal drawn, done
                done += 1
                is_due = done == total or time.monotonic() - drawn > REFRESH_SECONDS
                bars.update(task, advance=1, refresh=is_due)
                drawn = time.monotonic() if is_due else drawn

            return advance

        yield phase


def show(story: Story, where: dict[str, Any], backend: str, png: Path) -> None:
    say = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120).print
    for line in (*_facts(story), *_checks(story)):
        say(line)
    say()
    tables = [results_table(story), *_parts_tables(story)]
    for table in [errors_table(story), *tables] if story.checks else tables:
        say(table)
        say()
    for line in (*_notes(story, where, backend), f"plot: {png}"):
        say(line)


def _parts_tables(story: Story) -> list[Table]:
    calls = {f"{story.prompt_tokens} tokens": story.prefill_parts, "one token": story.decode_parts}
    return [parts_table(f"{MINE}, {what}", parts, story.roofline) for what, parts in calls.items()]


# --- lines -----------------------------------------------------------------------------------------------


def _facts(story: Story) -> list[str]:
    shape, mla = story.model.shape, story.model.shape.mla
    taken = story.entries[MINE].taken
    lines = [
        f"[bold]model[/]    DeepSeek-V3's layers: hidden {shape.hidden}, {mla.num_heads} heads, experts of "
        f"{shape.intermediate}",
        f"         scaled down to {shape.num_layers} layers, {shape.num_experts} experts and a vocabulary of "
        f"{story.model.vocab}; random weights",
        f"[bold]file[/]     {story.folder}, {_gb(story.file_bytes)}, "
        f"{'written' if story.is_new else 'was there'}",
        f"[bold]stock[/]    {escape(story.stock_refusal)}",
        *(
            f"[bold]{'' if i else 'moela':8}[/] {escape(line)}"
            for i, line in enumerate(_patched(story.patched))
        ),
        f"[bold]loaded[/]   in {story.entries[MINE].seconds_to_load:.1f} s",
    ]
    if taken:
        lines[-1] += (
            f"; peak {_gb(taken.peak)} until it generated, {taken.peak / story.file_bytes:.2f}x the file; "
            f"{_gb(taken.pages)} its pages, {_gb(taken.own)} its own"
        )
    lines.append(f"[bold]tokens[/]   {' '.join(map(str, story.generated))}")
    return lines


def _patched(report: "PatchReport") -> list[str]:
    """What runs on moela, and what does not and why."""
    runs = Counter(f"{e.layer} by {e.detail.partition(' on ')[0]}" for e in report.entries if e.state != LEFT)
    left = Counter(f"{e.layer} ({e.detail})" for e in report.entries if e.state == LEFT)
    said = [f"{verb} {_counted(what)}" for verb, what in (("runs", runs), ("leaves", left)) if what]
    return [line.replace(_TIE, " ") for text in said for line in textwrap.wrap(text, 110)]


def _counted(what: Mapping[str, int]) -> str:
    """An entry is not broken between lines."""
    return ", ".join(f"{count} {name}".replace(" ", _TIE) for name, count in what.items())


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _checks(story: Story) -> list[str]:
    if story.float32 is None:
        return ["[yellow]checked  nothing, because stock fp32 did not run[/]"]
    found = story.float32
    return [
        f"[bold]checked[/]  float32 activations: logits of {found.num_tokens} tokens within {found.worst:.1e}"
        f" of the dequantized float32 model's; allowed {story.float32_bound:.1e}",
        "         and the same new tokens as its",
    ]


def _notes(story: Story, where: dict[str, Any], backend: str) -> list[str]:
    lines = [*story.absent]
    for name, entry in story.entries.items():
        if name != MINE and entry.mine is None:
            lines.append(f"{name} ran alone: there is not the memory for both.")
        if entry.experts:
            prefill, decode = entry.experts
            how = prefill if prefill == decode else f"{prefill} for the prompt, {decode} for new tokens"
            lines.append(f"{name}: transformers' fastest experts here, {how}.")
    lines += [*NOTES, _floors(story), _roofs(story.roofline), describe(where)]
    if backend != "cpu":
        reason = backends.why_not("cpu", "fp8_gemm", "cpu")
        lines.append(f"[yellow]moela ran its slow {backend}, not its kernel for the CPU: {reason}.[/]")
    if where["load_before"] + where["threads"] > where["cores"] + 0.5:
        lines.append("[yellow]Others were computing on this machine: expect wide intervals.[/]")
    return lines


def _floors(story: Story) -> str:
    """What no model can be faster than that reads its weights from memory."""
    rates = [
        f"{name} {1 / story.roofline.time_floor(0, entry.bytes_per_token):.3g}"
        for name, entry in story.entries.items()
    ]
    return f"Reading the weights once per token allows tokens/s of: {', '.join(rates)}."


def _roofs(roofline: Roofline) -> str:
    return (
        f"Roofs, the best of all rounds: DRAM read {roofline.read_bytes_per_s * 1e-9:.1f} GB/s, "
        f"multiply-add {roofline.flops_per_s * 1e-9:.0f} GFLOP/s ({roofline.source})."
    )


# --- tables ----------------------------------------------------------------------------------------------


def errors_table(story: Story) -> Table:
    """Each contestant's logits against the float32 model's."""
    table = Table(**LOOK)
    table.add_column("logits against stock fp32", no_wrap=True)
    for column in ("error", "worst token", "same next token", "other experts", "greedy tokens"):
        table.add_column(column, justify="right")
    reference = story.tokens[REFERENCE]
    for name, found in story.checks.items():
        table.add_row(
            name,
            f"{found.total:.2%}",
            f"{found.worst:.2%}",
            f"{found.num_same_next} of {found.num_tokens}",
            f"{found.num_rerouted} tokens",
            f"first {agreeing(story.tokens[name], reference)} of {len(reference)}",
            style=_style(name),
        )
    return table


def results_table(story: Story) -> Table:
    """Tokens per second, moela first."""
    table = Table(**LOOK)
    table.add_column("tokens/s", no_wrap=True)
    table.add_column("GB", justify="right", no_wrap=True)
    short, P = min(SHORT, story.prompt_tokens), story.prompt_tokens
    for column in (f"prompt of {P}", f"new, after {short}", f"new, after {P}"):
        table.add_column(column, justify="right", no_wrap=True)
        table.add_column("moela is", justify="right", no_wrap=True)
    for name, entry in story.entries.items():
        mine = entry.mine or story.entries[MINE].times
        cells = []
        for own, other, tokens in zip(mine, entry.times, (P, 1, 1), strict=True):
            cells += [_rate(other, tokens), "" if name == MINE else str(Ratio.of(own, other))]
        memory = f"{entry.taken.peak / 1e9:.2f}" if entry.taken else "?"
        table.add_row(name, memory, *cells, style=_style(name))
    return table


def parts_table(what: str, parts: Sequence[Part], roofline: Roofline) -> Table:
    """Parts of one call, the longest first, and what the roofs leave of each."""
    table = Table(**LOOK)
    table.add_column(what, no_wrap=True)
    for column in ("ms", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("least ms", justify="right", no_wrap=True)
    total = sum(part.seconds for part in parts)
    for part in parts:
        share, floor = part.seconds / total, part.floor(roofline)
        bar = "█" * round(share * BAR_CELLS)
        table.add_row(part.name, _ms(part.seconds), f"{share:.0%}", bar, _ms(floor) if floor else "")
    table.add_section()
    table.add_row("all", _ms(total), "", "", _ms(sum(part.floor(roofline) for part in parts)), style="bold")
    return table


def _style(name: str) -> str:
    return "bold" if name == MINE else "none"


def _rate(timing: Timing, tokens: int) -> str:
    """Tokens per second."""
    low, middle, high = (_three(tokens / s) for s in (timing.p90, timing.median, timing.p10))
    return f"{middle} ({low} .. {high})"


def _ms(seconds: float) -> str:
    return _three(1e3 * seconds)


def _three(value: float) -> str:
    """Three digits, as far as they say something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
