"""The CUDA ep_dispatch, run on the host with several ranks: the rows of the definition, without a race."""

import ep
import gemm
import native
import pytest
import torch

SOURCE = "tests/emu/ep_dispatch.cpp"


def run(folder, case: ep.Case, schedule: str = "lazy", program=None) -> str:
    case.write(folder)
    return native.run(program or native.program(SOURCE), schedule, str(folder))


def assert_is_the_definition(folder, case: ep.Case, rank: int, epoch: int) -> None:
    name = f"{rank}.{epoch}"
    for i, width in enumerate(case.widths):
        x, ids, weights, _, _ = case.received(epoch, i)[rank]
        assert torch.equal(gemm.read(folder / f"{name}.out{i}", torch.uint8, case.room, width), x[: case.room])
    shape = (case.room, case.topk)
    assert torch.equal(gemm.read(folder / f"{name}.ids", torch.int32, *shape), ids[: case.room])
    assert torch.equal(gemm.read(folder / f"{name}.weights", torch.float32, *shape), weights[: case.room])


def assert_dispatches(folder, case: ep.Case, schedule: str = "lazy", program=None) -> None:
    verdict = run(folder, case, schedule, program)
    assert verdict == "right", verdict
    for rank, stream in enumerate(case.streams):
        assert ep.status_of(folder, rank).error == 0
        for epoch in range(1, stream.count("r") + 1):
            assert_is_the_definition(folder, case, rank, epoch)


@pytest.mark.parametrize(
    "case",
    [
        {"T": [[3, 20]]},
        {"T": [[5, 0, 9, 2]], "topk": 4, "num_experts": 5},  # a rank without tokens, more ranks than some need
        {"T": [[0, 0]]},
        {"T": [[4, 6, 3]], "num_experts": 2},  # a rank without experts
        {"T": [[6, 5]], "topk": 6, "widths": (128, 16, 48)},
        {"T": [[6, 5]], "topk": 5, "widths": (7, 3, 24, 2), "padding": 5},  # nothing that TMA can copy
        {"T": [[3]], "topk": 33, "num_experts": 40},
        {"T": [[2, 3]], "widths": (40_000,), "num_blocks": 3},  # two warps
    ],
    ids=str,
)
def test_is_the_definition(tmp_path, case):
    if case.get("num_experts") == 2:
        case = case | {"topk": 2}
    assert_dispatches(tmp_path, ep.Case(**case))
