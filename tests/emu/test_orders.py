"""Small kernels whose threads are not ordered as they must be, under every schedule; and right ones."""

import native
import pytest

# Program -> kernel -> what the report starts with; several where the schedule decides.
FAULTS = {
    "orders": {
        "two groups share a barrier": "barrier: an arrival at barrier 1 of block 0, but nothing orders",
        "an arrival counts twice": "barrier: a second arrival at barrier 1 of block 0",
        "more threads expected than come": "deadlock",
        "an arrival outruns the barrier": "barrier: a",
        "a block barrier in one role": "deadlock",
        "more registers than the block has": "deadlock",
        "half a warpgroup gives registers back": "exit: warps of warpgroup 0 of block 0 have executed",
        "arrival at a block that has exited": "exit: ",
        "store to a block that has exited": "exit: ",
        "remote arrival before the cluster is there": (
            "race: mbarrier.arrive",
            "mbarrier: mbarrier.arrive on",
        ),
        "data behind a relaxed cluster barrier": "race: a shared load",
        "load at another block's address": "bounds: a shared load takes an address of the own block",
        "neighbour overwrites what is being read": "race: ",
        "barrier invalidated while others wait": ("mbarrier: ", "race: "),
        "barrier's bytes reused without inval": "mbarrier: a shared store touches the mbarrier at smem+0",
        "first wait for empty with parity 0": "deadlock",
        "copy without expect_tx": ("race: a shared load", "mbarrier: "),
        "fence of the barrier after the cluster barrier": "proxy: an arrival from another block",
        "tile not on the repeat of its swizzle": "wgmma: an operand at smem+1536 of block 0 starts in row 4",
        "one warp leaves a product out": "divergence: only 96 of the 128 threads",
        "a copy that signals another block": "mbarrier: a bulk load to one block that signals an mbarrier of",
        "operand overwritten behind the commit": "race: ",
    },
    "handovers": {
        "stores handed over by a relaxed wait": "race: a global load",
        "stores handed over by a relaxed flag without a fence": "race: a global load",
        "a fence before the stores": "race: a global load",
        "a fence by one lane without sync_warp": "race: a global load",
        "no fence behind the relaxed wait": "race: a global load",
        "a loop over a plain load": "race: ",
        "a flag that nobody raises": "deadlock",
        "a flag raised when the copy has only been read": "race: a global load",
        "a stale load behind a bulk store": "race: a global load",
        "a load of global memory not fenced for the copy": "proxy: a bulk load",
        "a counter without a value": "uninitialised: a flag update",
        "counting and storing": "race: ",
        "copy whose source is overwritten": "race: a global store",
        "griddep_wait in one warp only": "race: a global load touches",
        "written before griddep_wait": "race: a global store touches",
        "exit before the store has read": "exit: ",
        "a source of another block": "bounds: a bulk store takes an address of the own block",
        "a made-up cache policy": "policy: ",
        "reduction of bytes": "reduce: ",
        "map edited while another block uses it": "race: ",
        "map of a store edited before it is read": "race: tensormap.replace",
        "map edited without fences": "proxy: the tensor map of a copy",
        "map acquired before it is released": "proxy: the tensor map of a copy",
        "map acquired by another thread": "proxy: the tensor map of a copy",
        "second edit not acquired": "proxy: the tensor map of a copy",
        "map acquired before the flag": "proxy: the tensor map of a copy",
        "map fenced for the other proxy": "proxy: the tensor map of a copy",
        "reduction not waited for": "race: a global load",
        "reduction beside an atomic addition": "race: ",
        "reduction beside a load": "race: ",
    },
}
CASES = [(program, name) for program, faults in FAULTS.items() for name in faults]


def kernels(program: str) -> list[str]:
    return native.run(native.program(f"tests/emu/{program}.cpp")).splitlines()


def report_of(program: str, name: str, schedule: str) -> str:
    return native.run(native.program(f"tests/emu/{program}.cpp"), name, schedule)


@pytest.mark.parametrize(("program", "name"), CASES, ids=[name for _, name in CASES])
def test_it_is_reported_under_every_schedule(program, name):
    for schedule in native.SCHEDULES:
        assert report_of(program, name, schedule).startswith(FAULTS[program][name]), schedule


@pytest.mark.parametrize("schedule", [*native.SCHEDULES, *map(str, range(4, 12))])
@pytest.mark.parametrize("program", FAULTS)
def test_a_right_kernel_is_left_in_peace(program, schedule):
    for name in kernels(program):
        if name.startswith("right: "):
            assert report_of(program, name, schedule) == "nothing", name


@pytest.mark.parametrize("program", FAULTS)
def test_every_kernel_is_tested(program):
    assert sorted(k for k in kernels(program) if not k.startswith("right: ")) == sorted(FAULTS[program])


def test_a_race_says_what_is_missing():
    report = report_of("handovers", "a flag raised when the copy has only been read", "lazy")
    assert "missing between them: bulk_commit and bulk_wait (not bulk_wait_read) by that thread" in report
