"""The CUDA ep_combine, run on the host with several ranks: the bits of the definition, without a race."""

import ep
import gemm
import native
import pytest
import torch
from moela import reference

SOURCE = "tests/emu/ep_combine.cpp"


class Case:
    """What comes back after a dispatch of random tokens."""

    def __init__(self, T, hidden, dtype=torch.bfloat16, layout="expert", topk=3, num_experts=7, padding=0):
        self.T, self.hidden, self.dtype, self.layout, self.topk = T, hidden, dtype, layout, topk
        self.padding, self.R, self.weighted = padding, len(T), layout != "compact"
        self.max_tokens = max(1, *T)
        ids, weights = zip(*(ep.routing(n, topk, num_experts, i) for i, n in enumerate(T)), strict=True)
        self.plans = [reference.ep_plan(x, num_experts, self.R) for x in ids]
        none = [torch.zeros((n, 1), dtype=torch.uint8) for n in T]
        capacity = [self.R * self.max_tokens * (topk if layout == "expert" else 1)] * self.R
        self.received = reference.ep_dispatch(none, list(ids), list(weights), num_experts, layout, capacity)
        g = torch.Generator().manual_seed(5)
        self.y = []
        for x, *_, placed in self.received:
            y = torch.full((x[..., 0].numel(), hidden), float("nan"), dtype=dtype)
            used = sorted(set(placed.values()))
            y[used] = torch.randn(len(used), hidden, generator=g).to(dtype)
            self.y.append(y)

    def expected(self) -> list:
        return reference.ep_combine(self.y, self.received, self.T, self.topk, self.weighted)

    def write(self, folder, streams: list[str]) -> None:
        places = 1 if self.layout == "compact" else self.topk
        ldy = self.hidden + self.padding
        words = (self.R, self.topk, places, self.max_tokens, 2, gemm.TYPES[self.dtype], self.hidden, ldy)
        (folder / "case").write_text(" ".join(map(str, (*words, int(self.weighted), *streams))))
        for r, (_, _, weights, _, placed) in enumerate(self.received):
            positions = torch.full((self.R * self.max_tokens, places), -1, dtype=torch.int32)
            rows = sorted({pair[:2] for pair in placed})  # received order
            for (source, t, k), place in placed.items():
                positions[rows.index((source, t)), 0 if places == 1 else k] = place
            padded = torch.full((self.y[r].size(0), ldy), float("nan"), dtype=self.dtype)
            padded[:, : self.hidden] = self.y[r]
            _, counts, slots = self.plans[r]
            recv_counts = torch.tensor([sum(s == source for s, _ in rows) for source in range(self.R)])
            files = {"y": padded, "positions": positions, "recv_counts": recv_counts.int(), "slots": slots}
            files |= {"weights": weights.float(), "send_counts": counts}
            for name, t in files.items():
                gemm.write(folder / f"{r}.{name}", t)


def run(folder, case: Case, schedule: str = "lazy", epochs: int = 1, program=None) -> str:
    case.write(folder, ["sr" * epochs] * case.R)
    return native.run(program or native.program(SOURCE), schedule, str(folder))


def assert_combines(folder, case: Case, schedule: str = "lazy", epochs: int = 1, program=None) -> None:
    verdict = run(folder, case, schedule, epochs, program)
    assert verdict == "right", verdict
    for r, expected in enumerate(case.expected()):
        assert ep.status_of(folder, r).error == 0
        for epoch in range(1, epochs + 1):
            if case.T[r]:
                got = gemm.read(folder / f"{r}.{epoch}.out", case.dtype, case.T[r], case.hidden)
                assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", ep.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_is_the_definition(tmp_path, dtype, layout):
    assert_combines(tmp_path, Case([5, 0, 7], 72, dtype, layout))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_takes_rows_that_are_not_aligned(tmp_path, dtype):
    assert_combines(tmp_path, Case([4, 6], 37, dtype, padding=2))


def test_takes_rows_of_many_pieces_and_more_experts_than_lanes(tmp_path):
    assert_combines(tmp_path, Case([3, 2], 1500 * 8, topk=2))
    assert_combines(tmp_path, Case([3, 2], 16, topk=35, num_experts=40))


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_is_the_definition_under_every_schedule_of_threads(tmp_path, schedule):
    assert_combines(tmp_path, Case([40, 33, 20], 24), schedule, epochs=3)


def test_rows_that_y_does_not_have_are_reported_and_not_read(tmp_path):
    """Of rank 0; places in a layout that is sorted by expert are used from the first on."""
    case = Case([5, 6], 24)
    used = max(case.received[0][-1].values())
    case.y[0] = case.y[0][:used]
    assert run(tmp_path, case) == "right"
    assert ep.status_of(tmp_path, 0) == (ep.CAPACITY, 0, 1)
    assert ep.status_of(tmp_path, 1).error == 0


FAULTS = {
    "stores are waited for until they are read only": (
        "  if (lane() == 0) bulk_wait<0>();  //",
        "  if (lane() == 0) bulk_wait_read<0>();  //",
        "cuda/ep_combine/ep_combine_send_sm90.cuh",
    ),
    "a stage is filled while it is stored": (
        "    if (lane() == 0) bulk_wait_read<1>();",
        "    if (lane() == 0) bulk_wait_read<2>();",
        "cuda/ep_combine/ep_combine_send_sm90.cuh",
    ),
    "lanes do not fence what TMA sends": (
        "    fence_proxy_async_shared();\n",
        "",
        "cuda/ep_combine/ep_combine_send_sm90.cuh",
    ),
    "rows are read through the read-only path": (
        "return ldg(from);",
        "return ldg_nc(from);",
        "cuda/ep_combine/ep_combine_receive_sm90.cuh",
    ),
    "a list is overwritten while it is read": (
        "  sync_warp();  // who still reads the last token's list\n",
        "",
        "cuda/ep_combine/ep_combine_receive_sm90.cuh",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_out(tmp_path, fault):
    line, instead, header = FAULTS[fault]
    program = native.program_without(line, header, SOURCE, instead)
    verdict = run(tmp_path, Case([40, 33, 20], 24), "lazy", 3, program)
    assert verdict.startswith(("race:", "proxy:", "read-only:", "uninitialised:")), verdict
