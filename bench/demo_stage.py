"""The phases of the demo: load, race, check, look where the time goes."""

import time
from collections.abc import Iterable, Sequence

import torch
from moela.bench import demo_check, demo_loading, demo_profile, demo_race, memory
from moela.bench.demo_race import Pass, Racer, Times
from moela.bench.demo_story import MINE, REFERENCE, SAME_DTYPE, STOCK, Entry, Story
from moela.bench.demo_view import Phase
from moela.bench.roofline import Probes, probes_for
from moela.bench.timer import Timing
from torch import Tensor

# What a process takes beside the weights: activations of the prompt, scratch, the interpreter.
ROOM_BYTES = 700_000_000
PROFILED_STEPS, PROFILED_PREFILLS = 9, 3


class WrongResultError(Exception):
    """Says which."""


def tell(story: Story, prompt_tokens: int, new_tokens: int, phase: Phase) -> None:
    """Fill the story. Raises WrongResultError."""
    story.prompt_tokens = prompt_tokens
    prompt = demo_check.random_prompt(story.model.vocab, prompt_tokens)
    story.stock_refusal = demo_loading.why_stock_does_not_load(story.model)
    probes = probes_for("cpu", torch.get_num_threads())
    stage = Stage(story, prompt, new_tokens, probes, phase)
    stage.load_mine()
    for name in STOCK:
        stage.race_against(name)
        if name == REFERENCE and name in stage.passes:
            stage.check_float32()
    stage.finish_mine()
    stage.check_bf16()
    stage.profile_mine()


class Stage:
    """What is in memory while the story is told."""

    def __init__(self, story: Story, prompt: Tensor, new_tokens: int, probes: Probes, phase: Phase) -> None:
        self.story, self.prompt, self.new_tokens = story, prompt, new_tokens
        self.probes, self.phase = probes, phase
        self.passes: dict[str, Pass] = {}
        self.races: list[Racer] = []  # moela's
        self.roofs: list[dict[str, Timing]] = []

    def load_mine(self) -> None:
        story, advance = self.story, self.phase("load it with moela, generate", 2)
        usage, start = memory.Usage(), time.perf_counter()
        self.net, story.patched = demo_loading.load(story.folder, torch.bfloat16)
        self.seconds_to_load = time.perf_counter() - start
        advance()
        out = self.net.generate(self.prompt, max_new_tokens=self.new_tokens, do_sample=False)
        story.generated = out[0, self.prompt.size(1) :].tolist()
        self.taken = usage.taken()
        advance()

    def race_against(self, name: str) -> None:
        """Build a stock model, race moela against it and let it go."""
        story, dtype = self.story, STOCK[name]
        memory.give_back()  # the model of before
        num_weights = story.model.num_weights
        needed, free = num_weights * dtype.itemsize + ROOM_BYTES, memory.available_bytes()
        if free is not None and needed > free:
            story.absent.append(
                f"Not run: {name}: needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
                "fewer --experts need less."
            )
            return
        advance = self.phase(f"build {name}", len(story.model.specs))
        usage, start = memory.Usage(), time.perf_counter()
        racer = Racer(name, story.model.stock(dtype, demo_race.EXPERTS[0], advance))
        seconds = time.perf_counter() - start
        # moela's pages count as free, for the system can take them. Then it would have to read them again.
        is_roomy = free is None or needed + story.file_bytes <= free
        mine = [Racer(MINE, self.net)] if is_roomy else []
        self._race([*mine, racer], f"race with {name}")
        story.entries[name] = Entry(
            seconds,
            usage.taken(),
            demo_profile.bytes_per_token(racer.net, story.model.shape.topk),
            racer.times(),
            mine[0].times() if mine else None,
            (racer.prefill, racer.decode),
        )
        self.passes[name] = racer.first

    def _race(self, racers: Sequence[Racer], what: str) -> None:
        advance = self.phase(what, demo_race.ROUNDS + 1)
        for racer in racers:
            demo_race.warm_up(racer, self.prompt)
            if racer.name != MINE:
                demo_race.choose_fastest(racer, self.prompt)
        advance()
        self.roofs.append(demo_race.race(racers, self.probes, self.prompt, self.new_tokens, advance))
        self.races += [racer for racer in racers if racer.name == MINE]

    def check_float32(self) -> None:
        story, advance = self.story, self.phase("check with float32 activations", 2)
        memory.give_back()
        net, _ = demo_loading.load(story.folder, torch.float32)
        advance()
        got, reference = demo_race.run(net, self.prompt, self.new_tokens), self.passes[REFERENCE]
        found = demo_check.compare(got, reference)
        shape = story.model.shape
        story.float32_bound = demo_check.float32_bound(
            shape.num_layers, max(shape.hidden, shape.dense_intermediate)
        )
        fault = demo_check.faults_in_float32(found, story.float32_bound)
        if fault := fault or demo_check.faults_in_tokens(got.tokens, reference.tokens):
            raise WrongResultError(f"{fault}; delete {story.folder} to have it written anew")
        story.float32 = found
        advance()

    def finish_mine(self) -> None:
        story = self.story
        if not self.races:
            self._race([Racer(MINE, self.net)], "race alone")
        num_bytes = demo_profile.bytes_per_token(self.net, story.model.shape.topk)
        times = Times(*map(merged, zip(*(racer.times() for racer in self.races), strict=True)))
        story.entries = {
            MINE: Entry(self.seconds_to_load, self.taken, num_bytes, times, None),
            **story.entries,
        }
        self.passes[MINE] = self.races[0].first
        if self.passes[MINE].tokens != story.generated:
            raise WrongResultError(
                f"generate() gave {story.generated}, a loop over the cache {self.passes[MINE].tokens}"
            )
        # The fastest samples: these roofs are for floors, and others slow a probe as they slow a contestant.
        roofs = {name: Timing((min(merged(r[name] for r in self.roofs).samples),)) for name in self.roofs[0]}
        story.roofline = self.probes.roofline(roofs)

    def check_bf16(self) -> None:
        story = self.story
        story.tokens = {name: done.tokens for name, done in self.passes.items()}
        if REFERENCE not in self.passes:
            return
        for name, done in self.passes.items():
            if name != REFERENCE:
                story.checks[name] = demo_check.compare(done, self.passes[REFERENCE])
        if SAME_DTYPE in story.checks:
            fault = demo_check.faults_in_bf16(story.checks[MINE], story.checks[SAME_DTYPE])
            if fault:
                raise WrongResultError(fault)

    def profile_mine(self) -> None:
        story, advance = self.story, self.phase("see where the time goes", 2)
        story.prefill_parts = demo_profile.profile_prefill(self.net, self.prompt, PROFILED_PREFILLS)
        advance()
        story.decode_parts = demo_profile.profile_decode(self.net, self.prompt, PROFILED_STEPS)
        advance()


def merged(timings: Iterable[Timing]) -> Timing:
    """The samples of several races."""
    return Timing(tuple(sample for timing in timings for sample in timing.samples))
