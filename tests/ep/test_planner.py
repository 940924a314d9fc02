"""The planner: its formulas against drawn routing, what must hold for any sizes, and what it recommends."""

import itertools
from dataclasses import replace

import pytest
import torch
from moela.ep.planner import memory, routing, topology
from moela.ep.planner.memory import GIB, LAYOUTS
from moela.ep.planner.model import PATHS, PHASES, Sizes, exchange, kappa, split, uniform
from moela.ep.planner.planning import Case, chunked_time, helps, plan
from moela.shapes import MODELS, GroupShape

H100 = topology.load("dgx-h100")
V3 = MODELS["deepseek-v3"]
QWEN = MODELS["qwen3-235b-a22b"]  # without groups
STANDARD_ERRORS = 4


def case(**changes):
    return Case(**{"model": QWEN, "topology": H100, "nodes": 4, "gpus": 8, "tokens": 4096} | changes)


# --- routing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("E", "K", "N", "G"), [(256, 8, 4, 8), (128, 8, 16, 8), (160, 6, 3, 7), (8, 2, 1, 8), (60, 4, 1, 60)]
)
def test_drawn_routing_agrees_with_the_closed_form_within_its_standard_error(E, K, N, G):
    drawn = routing.count(routing.draw("uniform", E, K), E, N, G).traffic(4096)
    exact = uniform(Sizes(N, G, E, K, 4096, 7168, "fp8"))
    assert abs(drawn.kappa_r - exact.kappa_r) <= STANDARD_ERRORS * drawn.kappa_r_error + 1e-12
    assert abs(drawn.kappa_n - exact.kappa_n) <= STANDARD_ERRORS * drawn.kappa_n_error + 1e-12


def test_the_closed_form_counts_parts_hit():
    """By enumeration: 5 experts on parts of 2, 2 and 1, of which a token chooses 2."""
    parts = [0, 0, 1, 1, 2]
    chosen = list(itertools.combinations(range(5), 2))
    assert kappa([2, 2, 1], 2) == pytest.approx(sum(len({parts[e] for e in c}) for c in chosen) / len(chosen))


def test_experts_that_do_not_divide_are_spread_evenly_and_as_the_closed_form_has_them():
    for E, R in ((160, 48), (256, 72), (7, 3), (8, 8), (5, 1)):
        sizes = split(E, R)
        assert sum(sizes) == E
        assert max(sizes) - min(sizes) <= 1
        owners = torch.arange(E) * R // E
        assert torch.bincount(owners, minlength=R).tolist() == sizes


def test_a_limit_on_groups_limits_the_nodes():
    limited = routing.draw("uniform", 256, 8, GroupShape(8, 4, "top2sum"))
    spread = routing.count(limited, 256, 8, 8).traffic(4096)
    assert spread.kappa_n <= 4
    assert 3.9 < spread.kappa_n < uniform(Sizes(8, 8, 256, 8, 1, 1, "fp8")).kappa_n


def test_equal_experts_show_no_busy_rank_where_the_sample_is_small():
    """Of 2048 ranks the largest count of a small sample is far above the mean; the batch's is not."""
    spread = routing.count(routing.draw("uniform", 2048, 8, num_tokens=4096), 2048, 256, 8).traffic(8192)
    assert 1 <= spread.phi_r < 1.05


def test_the_skew_of_a_batch_is_that_of_counting_it():
    """zipf on 8 ranks: the binomial draws against the rows of batches drawn token by token."""
    drawn = routing.draw("zipf:1.2", 64, 4, num_tokens=1 << 15)
    spread = routing.count(drawn, 64, 1, 8).traffic(512)
    ranks = drawn.topk_ids.view(8, 4096, 4) * 8 // 64  # 8 batches of 512 tokens a rank
    hit = torch.zeros(8, 4096, 8).scatter_(2, ranks, 1.0).sum(1)
    counted = (hit.amax(1) / hit.mean(1)).median().item()
    assert spread.phi_r == pytest.approx(counted, rel=0.02)
    assert spread.phi_r_99 >= spread.phi_r > 1.2


def test_recorded_ids_are_read_from_each_kind_of_file_and_rows_without_experts_count_for_nothing(tmp_path):
    ids = torch.tensor([[0, 1], [2, 3], [-1, -1], [0, 3]])
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.torch")
    numpy.save(tmp_path / "a.npy", ids.int().numpy())
    torch.save(ids, tmp_path / "a.pt")
    safetensors.save_file({"topk_ids": ids}, tmp_path / "a.safetensors")
    for suffix in routing.FILES:
        drawn = routing.draw(str(tmp_path / f"a{suffix}"), 4, 2)
        assert torch.equal(drawn.topk_ids, ids)
        spread = routing.count(drawn, 4, 2, 2)
        assert (spread.kappa_r, spread.kappa_n) == (6 / 4, 4 / 4)


BAD_FILES = {
    "no tensor": ([1, 2], "expected integers [num_tokens, topk], got list"),
    "floats": (torch.rand(3, 2), "expected integers [num_tokens, topk], got torch.float32 [3, 2]"),
    "layers": (torch.zeros(3, 2, 2, dtype=torch.int32), "got torch.int32 [3, 2, 2]"),
    "no tokens": (torch.zeros(0, 2, dtype=torch.int32), "got torch.int32 [0, 2]"),
    "another topk": (torch.zeros(3, 4, dtype=torch.int32), "expected topk = 2 columns, got 4"),
    "another model": (torch.full((3, 2), 9), "expected ids below 4, got 9"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_routing_is_refused(tmp_path, content, message):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"^routing: ") as refused:
        routing.draw(str(path), 4, 2)
    assert message in str(refused.value)


def test_a_file_that_is_broken_is_refused_in_one_line(tmp_path):
    pytest.importorskip("numpy")
    pytest.importorskip("safetensors")
    for suffix in routing.FILES:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=r"^routing: .*: expected a tensor in the format \.") as refused:
            routing.draw(str(path), 4, 2)
        assert "\n" not in str(refused.value)


# --- the model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("E", [512, 1000])
def test_more_ranks_never_mean_fewer_bytes_of_a_rank(path, E):
    for G in (4, 8):
        moved = []
        for N in (1, 2, 4, 8, 16, 32, 64):
            sizes = Sizes(N, G, E, 8, 4096, 7168, "fp8")
            x = exchange(path, "dispatch", sizes, uniform(sizes), H100)
            moved.append(x.bytes_between + x.bytes_inside)
        assert moved == sorted(moved)


@pytest.mark.parametrize("path", PATHS)
def test_one_rank_sends_nothing(path):
    sizes = Sizes(1, 1, 256, 8, 4096, 7168, "fp8")
    for phase in PHASES:
        x = exchange(path, phase, sizes, uniform(sizes), H100)
        assert (x.bytes_between, x.bytes_inside, x.messages) == (0, 0, 0)
        assert x.time == x.fixed


def test_few_sms_and_small_messages_become_the_limit():
    sizes = Sizes(4, 8, 256, 8, 4096, 7168, "fp8")
    spread = uniform(sizes)
    needed = exchange("hierarchical", "dispatch", sizes, spread, H100).num_sms
    assert exchange("hierarchical", "dispatch", sizes, spread, H100, num_sms=needed).limit == "between"
    assert exchange("hierarchical", "dispatch", sizes, spread, H100, num_sms=2).limit == "SM copies"
    tiny = replace(sizes, hidden=64)
    assert exchange("direct", "dispatch", tiny, spread, H100).limit == "message rate"
    one = replace(sizes, T=1)
    assert exchange("direct", "dispatch", one, spread, H100).limit == "fixed cost"


@pytest.mark.parametrize("name", topology.names())
def test_every_preset_says_where_its_figures_come_from_and_can_be_planned_with(name):
    machine = topology.load(name)
    for symbol, figure in machine.figures.items():
        assert symbol in topology.SYMBOLS
        assert figure.kind in topology.KINDS
        assert figure.value > 0
        assert len(figure.source) > 10
    nodes = 1 if machine.between is None else 2
    found = plan(case(topology=machine, nodes=nodes, gpus=min(machine.domain, 8)))
    assert 0 < found.time < 1


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_worst_case_holds_what_can_arrive_and_no_capacity_needs_more(layout):
    E, K, R, T = 12, 3, 4, 5
    sizes = Sizes(2, 2, E, K, T, 128, "bf16")
    # All tokens choose three experts of rank 0, which has three: each is a row there by token or by expert.
    worst = {"compact": R * T, "expert-sorted": R * T * 3, "masked": 3 * R * T}[layout]
    assert memory.dispatch_rows(layout, sizes, 2.0, None) == worst
    assert memory.dispatch_rows(layout, sizes, 2.0, 100.0) == worst
    assert (
        memory.dispatch_rows(layout, sizes, 2.0, 1.0)
        == {"compact": 10, "expert-sorted": 15, "masked": 15}[layout]
    )


def test_at_thousands_of_ranks_buffers_are_the_limit_and_not_time():
    found = plan(case(model=V3, groups=V3.groups, nodes=256, tokens=8192, experts=2048))
    assert found.limit == "buffer memory"
    assert found.buffer > 100 * GIB
    assert found.time < 4 * plan(case(model=V3, tokens=8192)).time
    assert found.chunk is not None
    assert plan(replace(found.case, tokens=found.chunk)).limit == "between"
    assert chunked_time(found, found.chunk) < 1.1 * found.time
    bounded = plan(replace(found.case, capacity=1.25))
    assert bounded.limit == "between"
    assert memory.capacity_needed("compact", bounded.traffic) < 1.25


# --- what limits and what would help ---------------------------------------------------------------------


def test_what_would_help_makes_it_faster_and_the_best_comes_first():
    found = plan(case(nodes=16, payload="bf16", kind="zipf:0.5"))
    better = helps(found)
    assert {"fp8", "nodes", "routing", "experts"} == {h.what.partition(" ")[0] for h in better}
    times = [h.time for h in better]
    assert times == sorted(times)
    assert times[-1] < found.time


def test_inside_one_node_only_what_concerns_it_is_named():
    assert plan(case(nodes=1)).limit == "inside"
    assert helps(plan(case(nodes=1))) == []


def test_what_is_not_hidden_by_other_work_is_exposed():
    found = plan(case(overlap_us=1000.0))
    assert found.exposed == pytest.approx(found.time - 1e-3)
    assert plan(case(overlap_us=1e6)).exposed == 0


BAD = {
    "nodes": ({"nodes": 0}, "nodes: expected a number from 1, got 0"),
    "tokens": ({"tokens": 0}, "tokens: expected a number from 1, got 0"),
    "ranks": ({"nodes": 32}, "ranks: expected at most the 128 experts, got 256; give --experts, with copies"),
    "topk": (
        {"model": replace(QWEN, topk=129)},
        "topk: expected at most the 128 experts of qwen3-235b-a22b, got 129",
    ),
    "experts": ({"experts": 100}, "experts: expected at least the 128 of qwen3-235b-a22b, got 100"),
    "gpus": ({"gpus": 9}, "gpus: expected at most 8 a node of dgx-h100, got 9"),
    "a link": (
        {"topology": topology.load("cpu-shm")},
        "nodes: expected 1, as cpu-shm has no link between nodes, got 4",
    ),
    "groups": ({"groups": GroupShape(7, 4, "max")}, "groups: expected a number that divides 128, got 7"),
    "groups too few": (
        {"groups": GroupShape(64, 3, "max")},
        "groups: expected up to 64 groups, with 8 experts or more, got 3",
    ),
    "payload": ({"payload": "fp4"}, "payload: expected one of fp8, bf16, got fp4"),
    "layout": (
        {"layout": "ragged"},
        "layout: expected one of compact, expert-sorted, masked, got ragged",
    ),
    "capacity": ({"capacity": 0}, "capacity: expected a number above 0, got 0"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_a_case_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=r"^plan-ep: ") as refused:
        case(**changes)
    assert str(refused.value) == f"plan-ep: {message}"


def test_an_unknown_topology_or_routing_is_refused():
    with pytest.raises(ValueError, match=r"topology: expected one of cpu-shm, dgx-b200, .*, got 'dgx'"):
        topology.load("dgx")
    for kind in ("zipf", "zipf:-1", "zipf:x", "gauss"):
        with pytest.raises(ValueError, match=r"routing: expected uniform, zipf:<exponent>, or a file"):
            routing.draw(kind, 8, 2)
    with pytest.raises(ValueError, match=r"routing: expected a file that exists, got 'no.npy'"):
        routing.draw("no.npy", 8, 2)
