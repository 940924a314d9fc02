"""Dispatch and combine of the CUDA kernels in one memory, the same launches again and again."""

import ep
import gemm
import native
import pytest
import torch
from moela import reference
from moela.ep.placement import expert_range

SOURCE = "tests/emu/ep_layer.cpp"
T, TOPK, E, HIDDEN, ROUNDS = (9, 0, 6), 3, 7, 36, 4


def write(folder) -> list[torch.Tensor]:
    """-> what each rank gets back: the sum of its weights times x, exact."""
    R = len(T)
    firsts = [expert_range(E, R, r).start for r in range(R)] + [E]
    sizes = (R, TOPK, max(T), HIDDEN, 2, ROUNDS, *firsts)
    (folder / "case").write_text(" ".join(map(str, sizes)))
    wanted = []
    for r, n in enumerate(T):
        ids, _ = ep.routing(n, TOPK, E, r)
        g = torch.Generator().manual_seed(r)
        x = torch.randint(-4, 5, (n, HIDDEN), generator=g).bfloat16()
        weights = torch.randint(-3, 4, (n, TOPK), generator=g).float()
        _, counts, slots = reference.ep_plan(ids, E, R)
        files = {"x": x, "ids": torch.where(slots >= 0, ids, -1).int(), "weights": weights}
        for name, t in (files | {"slots": slots, "counts": counts}).items():
            gemm.write(folder / f"{r}.{name}", t)
        wanted.append((x.float() * torch.where(slots >= 0, weights, 0).sum(1, keepdim=True)).bfloat16())
    return wanted


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_launches_that_are_repeated_go_on_counting_epochs(tmp_path, schedule):
    wanted = write(tmp_path)
    assert native.run(native.program(SOURCE), schedule, str(tmp_path)) == "right"
    for r, out in enumerate(wanted):
        assert ep.status_of(tmp_path, r).error == 0
        if T[r]:
            assert torch.equal(gemm.read(tmp_path / f"{r}.out", torch.bfloat16, T[r], HIDDEN), out)


def test_an_epoch_that_is_not_counted_is_found_out(tmp_path):
    """Every launch works on the first epoch again: on rows that others may be writing."""
    line = "      stg(x.epochs + static_cast<int>(half), epoch);\n"
    instead = line.replace("epoch)", "epoch - 1)")
    program = native.program_without(line, "cuda/block/ep_exchange.cuh", SOURCE, instead)
    write(tmp_path)
    verdict = native.run(program, "lazy", str(tmp_path))
    assert verdict.startswith("race:"), verdict
