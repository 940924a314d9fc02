"""What every layout and transport promises, bit for bit: against the definition, which moves row by row."""

import moela
import pytest
import routing
import torch
import usable
from moela import reference
from moela.ep import EpBuffer, host_exchange, run_local

E, TOPK, HIDDEN, MAX_TOKENS = 7, 3, 5, 6
# Nothing in common with the sizes of rows: x alone ends off every boundary.
EXTRAS = ((torch.float8_e4m3fn, 3), (torch.float8_e8m0fnu, 1), (torch.int64, 2), (torch.bool, 0))


def extras_of(rank: int, T: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(100 + rank)
    bits = [torch.randint(0, 256, (T, w * d.itemsize), generator=g, dtype=torch.uint8) for d, w in EXTRAS]
    return [(b % 2 if d == torch.bool else b).view(d) for b, (d, _) in zip(bits, EXTRAS, strict=True)]


def as_bytes(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8)


def exchanged(group, transport: str, all_tokens: list, layout: str, dtype: torch.dtype, capacity: int | None):
    """On one rank: a dispatch with extras, experts that multiply by their number plus one, a combine."""
    with EpBuffer(
        group,
        num_experts=E,
        hidden=HIDDEN,
        topk=TOPK,
        max_tokens=MAX_TOKENS,
        **usable.over(transport),
        row_bytes=256,
        deadline=20,
    ) as buffer:
        x, ids, weights = all_tokens[buffer.rank]
        x = x.to(dtype)
        got = moela.ep_dispatch(
            x, ids, weights, group=buffer.name, extras=extras_of(buffer.rank, len(x)), layout=layout,
            capacity=capacity,
        )  # fmt: skip
        y = got.x.float().nan_to_num(0.0).bfloat16()
        weights = None if layout == "compact" else got.topk_weights
        return got, y, moela.ep_combine(y, got.handle, group=buffer.name, topk_weights=weights)


def expect_defined(all_tokens: list, dtype: torch.dtype, layout: str, results: list) -> None:
    capacity = [got.x.size(-2) for got, _, _ in results]
    ids, weights = [t.topk_ids for t in all_tokens], [t.topk_weights for t in all_tokens]
    rows = [as_bytes(t.x.to(dtype)) for t in all_tokens]
    defined = reference.ep_dispatch(rows, ids, weights, E, layout, capacity)
    for (got, _, _), (x, topk_ids, topk_weights, experts, _) in zip(results, defined, strict=True):
        assert torch.equal(as_bytes(got.x), x)
        assert torch.equal(got.topk_weights, topk_weights)
        mine = {"compact": got.topk_ids, "expert": got.expert_offsets, "masked": got.expert_counts}
        wanted = {"compact": topk_ids, "expert": experts, "masked": experts}
        assert torch.equal(mine.pop(layout), wanted[layout])
        assert [*mine.values()] == [None, None]
    for i in range(len(EXTRAS)):
        rows = [as_bytes(extras_of(rank, len(t.x))[i]) for rank, t in enumerate(all_tokens)]
        defined_extra = reference.ep_dispatch(rows, ids, weights, E, layout, capacity)
        for (got, _, _), (x, *_) in zip(results, defined_extra, strict=True):
            assert got.extras[i].dtype == EXTRAS[i][0]
            assert torch.equal(as_bytes(got.extras[i]), x)
    T = [len(t.x) for t in all_tokens]
    outs = reference.ep_combine([y for _, y, _ in results], defined, T, TOPK, layout != "compact")
    for (_, _, got), want in zip(results, outs, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", ["compact", "expert", "masked"])
@pytest.mark.parametrize("R", [1, 2, 3, 8])  # 8: more ranks than experts
@pytest.mark.usefixtures("way")
def test_rows_arrive_as_defined(R, layout):
    for case in routing.CASES:
        all_tokens = routing.tokens(case, R, E, TOPK, HIDDEN, MAX_TOKENS)
        repeats = layout != "compact" and case in ("one expert", "one rank", "repeated")
        capacity = R * MAX_TOKENS * TOPK if repeats else None
        results = run_local(R, exchanged, "local", all_tokens, layout, torch.float16, capacity)
        expect_defined(all_tokens, torch.float16, layout, results)


@pytest.mark.parametrize("layout", ["compact", "expert", "masked"])
@pytest.mark.parametrize("transport", [usable.USABLE[name] for name in ("shm", "hier", "collective")])
def test_every_transport_gives_the_same_bits(transport, layout, monkeypatch):
    R = 4 if transport == "hier" else 3
    all_tokens = routing.tokens("dropped", R, E, TOPK, HIDDEN, MAX_TOKENS)
    # What a rank has for itself is sent, or not.
    for dtype, least in ((torch.float8_e4m3fn, 2**16), (torch.float64, 0)):
        monkeypatch.setattr(host_exchange, "MIN_OWN_BYTES", least)
        results = run_local(R, exchanged, transport, all_tokens, layout, dtype, None)
        expect_defined(all_tokens, dtype, layout, results)


@pytest.mark.parametrize("layout", ["compact", "expert", "masked"])
@pytest.mark.usefixtures("way")
def test_a_capacity_that_is_just_enough(layout):
    all_tokens = routing.tokens("one rank", 2, E, TOPK, HIDDEN, MAX_TOKENS)
    [(got, _, _), _] = run_local(2, exchanged, "local", all_tokens, layout, torch.float32, None)
    came = {
        "compact": got.handle.recv_counts.sum(),
        "expert": got.expert_offsets,
        "masked": got.expert_counts,
    }
    capacity = int(came[layout].max())
    results = run_local(2, exchanged, "local", all_tokens, layout, torch.float32, capacity)
    expect_defined(all_tokens, torch.float32, layout, results)


@pytest.mark.usefixtures("way")
def test_without_a_capacity_there_is_room_for_all_and_no_more():
    """A rank with one expert and one with two, three experts per token."""

    def on_rank(group):
        with EpBuffer(group, num_experts=3, hidden=1, topk=3, max_tokens=4) as buffer:
            args = torch.ones(4, 1), torch.arange(3).expand(4, 3), torch.ones(4, 3)
            for layout, rows in (("compact", 8), ("expert", 8 * buffer.num_local_experts), ("masked", 8)):
                x = moela.ep_dispatch(*args, group=buffer.name, layout=layout).x
                assert x.size(-2) == rows
                assert x.all()

    run_local(2, on_rank)


@pytest.mark.usefixtures("way")
def test_a_token_travels_once_to_a_rank_with_several_of_its_experts():
    all_tokens = routing.tokens("one rank", 2, E, TOPK, HIDDEN, MAX_TOKENS)
    [(got, _, _), _] = run_local(2, exchanged, "local", all_tokens, "expert", torch.float32, None)
    T = torch.tensor([len(t.x) for t in all_tokens])
    assert torch.equal(got.handle.recv_counts, T.int())
    assert got.expert_offsets[-1] == TOPK * T.sum()


@pytest.mark.parametrize(
    ("hidden", "topk", "E", "R"),
    [(1, 1, 1, 2), (7, 40, 64, 3), (2880, 8, 5, 4), (16384, 2, 8, 2)],  # 8 of 5: some twice
)
def test_any_hidden_topk_and_number_of_experts(hidden, topk, E, R):
    all_tokens = routing.tokens("uniform", R, E, topk, hidden, 4)

    def on_rank(group):
        settings = {"num_experts": E, "hidden": hidden, "topk": topk, "max_tokens": 4}
        with EpBuffer(group, **settings, transport="collective") as buffer:
            x, ids, weights = all_tokens[buffer.rank]
            x = (x * 8).round().bfloat16()  # sums over ranks are exact
            got = moela.ep_dispatch(x, ids, weights, group=buffer.name)
            out = moela.ep_combine(got.x, got.handle, group=buffer.name)
            owner = torch.cat(
                [torch.full((len(p),), r) for r, p in enumerate(torch.arange(E).tensor_split(R))]
            )
            num_ranks = torch.tensor([len(set(owner[row].tolist())) for row in ids]).view(-1, 1)
            assert torch.equal(out, x * num_ranks)

    run_local(R, on_rank)


@pytest.mark.usefixtures("way")
def test_a_dimension_of_one_element_may_have_any_stride():
    """One expert per token, hidden 1, an extra of one element, and a rank without tokens: torch gives these
    strides other than 1, .contiguous() does not change them, and int64 ids become int32 on the way."""

    def on_rank(group):
        with EpBuffer(group, num_experts=2, hidden=1, topk=1, max_tokens=3, row_bytes=64) as buffer:
            T = 3 * buffer.rank
            x, extra, weights = torch.arange(1.0, 37).view(3, 3, 4)[:, :T, ::4]
            ids = torch.tensor([1, 0, 1]).expand(5, 3).t()[:T, ::5]
            got = moela.ep_dispatch(x, ids, weights, group=buffer.name, extras=[extra])
            y = torch.cat([got.x, got.x], 1)[:, ::2]
            return got.x, got.extras[0], got.topk_weights, moela.ep_combine(y, got.handle, group=buffer.name)

    for received, wanted in zip(run_local(2, on_rank), ([5, 0, 0], [1, 9, 0]), strict=True):
        for i, t in enumerate(received[:3]):
            assert t.flatten().tolist() == [v + 12 * i if v else 0 for v in (*wanted, 0, 0, 0)]
    assert received[3].flatten().tolist() == [1, 5, 9]
