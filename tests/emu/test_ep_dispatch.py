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


def read(path, like: torch.Tensor) -> torch.Tensor:
    return gemm.read(path, like.dtype, *like.shape) if like.numel() else like


def assert_is_the_definition(folder, case: ep.Case, rank: int, epoch: int) -> None:
    compact = case.layout == "compact"

    def file(what: str):
        return folder / f"{rank}.{epoch}.{what}"

    for i in range(len(case.widths)):
        x, ids, weights, experts, placed = case.received(epoch, i)[rank]
        x = x[: case.room] if compact else x
        assert torch.equal(read(file(f"out{i}"), x), x)
    weights = weights[: case.room] if compact else weights
    assert torch.equal(read(file("weights"), weights), weights)
    if compact:
        assert torch.equal(read(file("ids"), ids[: case.room]), ids[: case.room])
        return
    assert torch.equal(read(file("experts"), experts), experts)
    positions = torch.full((case.R * case.max_tokens, case.topk), -1, dtype=torch.int32)
    rows = {row: i for i, row in enumerate(sorted({pair[:2] for pair in placed}))}
    for (source, t, k), place in placed.items():
        positions[rows[source, t], k] = place
    assert torch.equal(read(file("positions"), positions), positions)


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
        {
            "T": [[5, 0, 9, 2]],
            "topk": 4,
            "num_experts": 5,
        },  # a rank without tokens, more ranks than some need
        {"T": [[0, 0]]},
        {"T": [[4, 6, 3]], "num_experts": 2, "topk": 2},  # a rank without experts
        {"T": [[6, 5]], "topk": 6, "widths": (128, 16, 48)},
        {"T": [[6, 5]], "topk": 5, "widths": (7, 3, 24, 2), "padding": 5},  # nothing that TMA can copy
        {"T": [[3]], "topk": 33, "num_experts": 40},
        {"T": [[2, 3]], "widths": (40_000,), "num_blocks": 3},  # two warps
    ],
    ids=str,
)
def test_is_the_definition(tmp_path, case):
    assert_dispatches(tmp_path, ep.Case(**case))


EPOCHS = [[3, 4, 1], [5, 0, 2], [2, 6, 6], [4, 1, 3]]


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize(
    "streams",
    [["srsrsrsr"] * 3, ["ssrrsrsr"] * 3, ["ssrsrsrr", "srsrsrsr", "ssrrssrr"]],
    ids=["one by one", "two in flight", "mixed"],
)
def test_epochs_follow_each_other_under_every_schedule_of_threads(tmp_path, streams, schedule):
    assert_dispatches(tmp_path, ep.Case(T=EPOCHS, streams=streams), schedule)


@pytest.mark.parametrize("layout", ["expert", "masked"])
@pytest.mark.parametrize(
    "case",
    [
        {"T": [[5, 0, 9]], "widths": (64, 20)},
        {"T": [[4, 6, 3]], "num_experts": 2, "topk": 2},  # a rank without experts
        {"T": [[0, 0]]},
        {"T": [[700, 500]], "topk": 2, "num_experts": 4, "widths": (16,)},  # several rows per thread
    ],
    ids=str,
)
def test_rows_are_sorted_by_expert(tmp_path, case, layout):
    assert_dispatches(tmp_path, ep.Case(layout=layout, **case))


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_epochs_of_sorted_rows_follow_each_other_under_every_schedule_of_threads(tmp_path, schedule):
    case = ep.Case(T=[[3, 4], [5, 0], [2, 6]], layout="masked", streams=["ssrrsr", "srssrr"])
    assert_dispatches(tmp_path, case, schedule)


@pytest.mark.parametrize(("layout", "capacity"), [("expert", 9), ("masked", 2)])
def test_too_many_sorted_rows_are_reported_and_counted(tmp_path, layout, capacity):
    case = ep.Case(T=[[6, 7]], layout=layout, capacity=capacity)
    assert run(tmp_path, case) == "right"
    for rank in (0, 1):
        assert ep.status_of(tmp_path, rank) == (ep.CAPACITY, rank, 1)
        experts = case.received(1, 0)[rank][3]
        assert torch.equal(read(tmp_path / f"{rank}.1.experts", experts), experts)


def test_many_rows_go_through_both_stages_of_a_warp(tmp_path):
    assert_dispatches(tmp_path, ep.Case(T=[[90, 70], [60, 80]], padding=0, num_blocks=1))


def test_a_rank_that_sends_nothing_is_named_after_the_deadline(tmp_path):
    case = ep.Case(T=[[3, 4, 5]], streams=["sr", "-", "sr"])
    assert run(tmp_path, case) == "right"
    for rank in (0, 2):
        assert ep.status_of(tmp_path, rank) == (ep.NOT_ARRIVED, 1, 1)
        counts = gemm.read(tmp_path / f"{rank}.1.recv_counts", torch.int32, 3)
        assert counts[1] == 0
        assert counts[0] > 0
        assert counts[2] > 0


def test_a_rank_that_gives_nothing_back_is_named_and_its_memory_left_alone(tmp_path):
    """Rank 2 learns from rank 0 that there will be no third epoch."""
    case = ep.Case(T=[[3, 4, 5]] * 3, streams=["srsrs", "ss", "srsr"])
    assert run(tmp_path, case) == "right"
    assert ep.status_of(tmp_path, 0) == (ep.NOT_RELEASED, 1, 3)
    assert ep.status_of(tmp_path, 2).error == 0


def test_a_rank_that_gives_up_is_named_by_all_and_the_next_epoch_works(tmp_path):
    case = ep.Case(T=[[3, 4], [5, 2]], streams=["srsr", "arsr"])
    assert run(tmp_path, case) == "right"
    for rank in (0, 1):
        assert ep.status_of(tmp_path, rank) == (ep.ABORTED, 1, 1)
        assert_is_the_definition(tmp_path, case, rank, 2)


def test_ranks_that_disagree_do_not_take_each_others_rows(tmp_path):
    case = ep.Case(T=[[3, 4]], streams=["sr", "dr"])
    assert run(tmp_path, case) == "right"
    assert ep.status_of(tmp_path, 0) == (ep.DISAGREEMENT, 1, 1)
    assert gemm.read(tmp_path / "0.1.recv_counts", torch.int32, 2)[1] == 0


def test_too_many_rows_are_reported_and_counted(tmp_path):
    case = ep.Case(T=[[6, 7]], capacity=3)
    assert run(tmp_path, case) == "right"
    for rank in (0, 1):
        assert ep.status_of(tmp_path, rank) == (ep.CAPACITY, rank, 1)
        rows = len({pair[:2] for pair in case.received(1, 0)[rank][-1]})
        assert gemm.read(tmp_path / f"{rank}.1.recv_counts", torch.int32, 2).sum() == rows > 3
        assert_is_the_definition(tmp_path, case, rank, 1)


EXCHANGE, SEND = "cuda/block/ep_exchange.cuh", "cuda/ep_dispatch/ep_send_sm90.cuh"
RECEIVE = "cuda/ep_dispatch/ep_receive_sm90.cuh"
ARRIVED = (
    "st_release<Scope::kSys>(ep_at<uint64_t>(memory, peer, memory.arrived_at(memory.rank)), ranks.epoch)"
)
RELEASED = (
    "st_release<Scope::kSys>(ep_at<uint64_t>(memory, source, memory.released_at(memory.rank)), ranks.epoch)"
)
FAULTS = {
    "arrival is told without a release": (EXCHANGE, ARRIVED, ARRIVED.replace("release<", "relaxed<", 1)),
    "arrival is released to the own device": (EXCHANGE, ARRIVED, ARRIVED.replace("kSys", "kGpu", 1)),
    "memory is given back without a release": (
        EXCHANGE,
        RELEASED,
        RELEASED.replace("release<", "relaxed<", 1),
    ),
    "nobody waits for arrival": (
        EXCHANGE,
        "const bool is_here = wait_flag_until<Scope::kSys>(flag, ranks.epoch, x.deadline);",
        "const bool is_here = flag != nullptr;",
    ),
    "nobody waits for memory to be given back": (
        EXCHANGE,
        "const bool is_open = wait_flag_until<Scope::kSys>(flag, epoch, x.deadline);",
        "const bool is_open = flag != nullptr || epoch > 0;",
    ),
    "stores are waited for until they are read only": (
        SEND,
        "  if (lane() == 0) bulk_wait<0>();  //",
        "  if (lane() == 0) bulk_wait_read<0>();  //",
    ),
    "the block's other warps are not waited for": (
        EXCHANGE,
        "  constexpr uint32_t kFailure = 0x10000;\n  sync_block();\n",
        "  constexpr uint32_t kFailure = 0x10000;\n",
    ),
    "the other blocks are not waited for": (
        EXCHANGE,
        "before % kFailure == static_cast<uint32_t>(num_blocks()) - 1",
        "before % kFailure == 0",
    ),
    "epochs share their memory": (
        "cuda/block/ep_memory.h",
        "static_cast<int64_t>(epoch & 1) * num_ranks",
        "static_cast<int64_t>(epoch & 0) * num_ranks",
    ),
    "rows go to another source's place": (
        SEND,
        "memory.rows_at(ranks.epoch, memory.rank)",
        "memory.rows_at(ranks.epoch, 0)",
    ),
    "a stage is filled while it is stored": (SEND, "      if (lane() == 0) bulk_wait_read<0>();", "      "),
    "a row is unpacked before it is there": (RECEIVE, "    warp.wait(i);\n", ""),
}
# Two epochs in flight, several rows per warp: enough that each fault shows.
FAULTY = {"T": [[40, 45], [50, 30], [45, 50]], "streams": ["ssrrsr"] * 2}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_out(tmp_path, fault):
    header, line, instead = FAULTS[fault]
    program = native.program_without(line, header, SOURCE, instead)
    verdict = run(tmp_path, ep.Case(**FAULTY), "lazy", program)
    assert verdict.startswith(("race:", "uninitialised:", "bounds:")), verdict


def test_a_sender_that_waits_for_the_wrong_epoch_is_found_out(tmp_path):
    """By the deadline that does not pass: test_a_rank_that_gives_nothing_back."""
    line = "const uint64_t epoch = ranks.epoch < 2 ? 0 : ranks.epoch - 2;"
    program = native.program_without(line, EXCHANGE, SOURCE, line.replace("2", "3"))
    case = ep.Case(T=[[3, 4, 5]] * 3, streams=["srsrs", "ss", "srsr"])
    assert run(tmp_path, case, "lazy", program) == "right"
    assert ep.status_of(tmp_path, 0).error == 0


def test_a_flag_that_has_risen_further_counts(tmp_path):
    """With == a rank whose peer is an epoch ahead waits in vain."""
    line = "  const uint64_t start = globaltimer();\n  while (ld_acquire<kScope>(flag) < value)"
    program = native.program_without(line, "cuda/hopper/waits.h", SOURCE, line.replace(" < ", " != "))
    assert run(tmp_path, ep.Case(T=EPOCHS[:2], streams=["ssrr"] * 3), "lazy", program) == "right"
    assert ep.status_of(tmp_path, 0).error == ep.NOT_ARRIVED
