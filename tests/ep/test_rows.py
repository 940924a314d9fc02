"""What C++ does to rows is what torch does to them, and neither reads or writes beyond them."""

from types import SimpleNamespace

import pytest
import torch
from moela import backends
from moela.ep import layout, rows
from moela.ep.transports import Received
from moela.ep.wire import WireFormat

if backends.library("cpu").handle is None:
    pytest.skip(f"cpu: {backends.library('cpu').error}", allow_module_level=True)

TOPK, R, RANK, MAX_TOKENS = 3, 3, 2, 5
IDS_AT, WEIGHTS_AT, ROW_BYTES = 16, 32, 64
FORM, LIKE = WireFormat((10, 4 * TOPK, 4 * TOPK)), [torch.empty(0, 5, dtype=torch.int16)]


@pytest.fixture
def both(monkeypatch):
    """(function) -> its results in C++ and in torch."""

    def run(function):
        compiled = function()
        with monkeypatch.context() as patched:
            patched.setattr(rows, "_has_kernels", lambda: False)
            return compiled, function()

    return run


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def received(counts: list[int], num_experts: int) -> Received:
    """Rows with gaps between the sources, full of ids that are none, and of weights that are NaN."""
    g = torch.Generator().manual_seed(sum(counts))
    wire = torch.full((R * MAX_TOKENS, ROW_BYTES), 0xFF, dtype=torch.uint8)
    wire[:, :IDS_AT] = torch.randint(256, (R * MAX_TOKENS, IDS_AT), dtype=torch.uint8, generator=g)
    starts = torch.arange(R, dtype=torch.int32) * MAX_TOKENS
    for start, n in zip(starts.tolist(), counts, strict=True):
        ids = torch.randint(-2, num_experts + 2, (n, TOPK), generator=g, dtype=torch.int32)
        wire[start : start + n, IDS_AT : IDS_AT + 4 * TOPK] = ids.view(torch.uint8)
        weights = torch.rand(n, TOPK, generator=g)
        wire[start : start + n, WEIGHTS_AT : WEIGHTS_AT + 4 * TOPK] = weights.view(torch.uint8)
    return Received(wire, starts, torch.tensor(counts, dtype=torch.int32))


@pytest.mark.parametrize("name", layout.LAYOUTS)
@pytest.mark.parametrize("experts", [(0, 7), (2, 3), (6, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("counts", [[0, 0, 0], [5, 0, 2], [5, 5, 5]], ids=str)
def test_places_are_those_of_the_definition(both, name, experts, counts):
    first, E = experts
    buffer = SimpleNamespace(
        rank=RANK, topk=TOPK, num_ranks=R, max_tokens=MAX_TOKENS, first_expert=first, num_local_experts=E
    )
    rows_ = received(counts, 7)
    for capacity in (-1, 0, 4, layout.shapes(buffer, name, None).rows[-1]):
        compiled, defined = both(lambda: layout.place(buffer, rows_, FORM, LIKE, name, capacity))  # noqa: B023
        assert compiled.needed == defined.needed
        if compiled.needed <= capacity or capacity == -1:
            for mine, theirs in zip(tensors_of(compiled), tensors_of(defined), strict=True):
                assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
                assert torch.equal(mine, theirs)
            into = [torch.full_like(column, -1) for column in compiled.columns]
            layout.place(
                buffer, rows_, FORM, LIKE, name, compiled.needed if capacity == -1 else capacity, into
            )
            assert torch.equal(into[0], compiled.columns[0])


@pytest.mark.parametrize("name", layout.LAYOUTS)
def test_rows_of_this_rank_are_taken_from_where_they_are(both, name):
    buffer = SimpleNamespace(
        rank=RANK, topk=TOPK, num_ranks=R, max_tokens=MAX_TOKENS, first_expert=2, num_local_experts=3
    )
    rows_ = received([5, 0, 2], 7)
    expected = layout.place(buffer, rows_, FORM, LIKE, name, -1)
    mine = FORM.column(rows_.wire[rows_.starts[RANK] :][:2], 0)
    like = torch.zeros(4, 7, dtype=torch.int16)[:, :5]
    like[[3, 1]] = mine.contiguous().view(torch.int16)
    mine.fill_(0xFF)
    own_rows = torch.tensor([3, 1], dtype=torch.int32)
    for placed in both(lambda: layout.place(buffer, rows_, FORM, [like], name, -1, None, own_rows)):
        assert torch.equal(placed.columns[0], expected.columns[0])
        assert torch.equal(placed.positions, expected.positions)


def tensors_of(placed: layout.Placement) -> list[torch.Tensor]:
    return [*placed.columns, *placed[1:-1]]


@pytest.mark.parametrize("width", [0, 1, 15, 64, 5000])
@pytest.mark.parametrize("num_rows", [0, 1, 2000])
def test_rows_are_gathered_and_zeroed(both, guarded, width, num_rows):
    """2000 rows of 5000 bytes go past the caches."""
    source = guarded(random_bytes(50, width), True)
    index = torch.randint(-1, 50, (num_rows,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))

    def gather():
        out = random_bytes(num_rows, width + 3)
        rows.gather_rows(source, index, out[:, 1 : 1 + width])
        return out

    compiled, defined = both(gather)
    assert torch.equal(compiled, defined)


def test_columns_are_packed_in_groups_and_nothing_else_is_written(both):
    columns = [random_bytes(9, 40)[:, 3:33], random_bytes(9, 1), random_bytes(9, 16)]
    index = torch.tensor([8, 0, 0, 3, 99, -7], dtype=torch.int32)  # the last two belong to no group

    def pack(*own):
        wire = random_bytes(12, 64)
        rows.pack(columns, index, [0, 32, 48], [3, 0, 1], [7, 0, 2], wire, *own)
        return wire

    compiled, defined = both(pack)
    assert torch.equal(compiled, defined)
    assert torch.equal(compiled[7:10, :30], columns[0][[8, 0, 0]])
    untouched = [0, 1, 3, 4, 5, 6, 10, 11]
    assert torch.equal(compiled[untouched], random_bytes(12, 64)[untouched])

    compiled, defined = both(lambda: pack((0, 2)))
    assert torch.equal(compiled, defined)
    assert torch.equal(compiled[7:10, :48], random_bytes(12, 64)[7:10, :48])
    assert torch.equal(compiled[7:10, 48:], columns[2][[8, 0, 0]])


def test_rows_come_back_once_and_in_the_order_of_the_ranks(both):
    wire, starts = torch.zeros(12, 16, dtype=torch.uint8), torch.tensor([8, 0, 4], dtype=torch.int32)
    counts = torch.tensor([2, 1, 3], dtype=torch.int32)
    slots = torch.tensor([[2, 0, 2], [-1, -1, -1], [5, 5, 5], [1, -1, 3]], dtype=torch.int32)
    compiled, defined = both(lambda: rows.returned_rows(slots, wire, starts, counts))
    assert torch.equal(compiled, defined)
    assert [[r for r in row if r >= 0] for row in compiled.tolist()] == [[8, 0], [], [6], [9, 4]]


def test_a_row_that_is_not_there_is_an_error():
    out, index = torch.zeros(1, 4, dtype=torch.uint8), torch.tensor([3], dtype=torch.int32)
    with pytest.raises(ValueError, match="gather_rows: rows: expected less than 3, got 3"):
        rows.gather_rows(random_bytes(3, 4), index, out)
    with pytest.raises(ValueError, match="pack: expected rows that the columns have"):
        rows.pack([random_bytes(3, 4)], index, [0], [1], [0], out)
    with pytest.raises(ValueError, match="pack: expected counts to be rows of wire"):
        rows.pack([random_bytes(4, 4)], index, [0], [1], [1], out)
    with pytest.raises(ValueError, match="pack: expected a row for each that is counted"):
        rows.pack([random_bytes(4, 4)], index[:0], [0], [1], [0], out)


def test_rows_and_places_are_counted(both):
    counts, positions = torch.tensor([1, 0, 2], dtype=torch.int32), torch.tensor([[3], [7], [-1], [9]])
    assert both(lambda: rows.num_places(counts, positions.int())) == ((3, 8), (3, 8))
    assert both(lambda: rows.num_places(counts[1:2], positions.int())) == ((0, 0), (0, 0))
