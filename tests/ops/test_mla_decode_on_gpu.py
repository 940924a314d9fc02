"""mla_decode on a GPU: the shapes of models, and one CUDA graph for any lengths."""

from typing import Any

import moela
import pytest
import torch
from moela import testing

TARGETS = ("cuda-cuda", "triton-cuda") if torch.cuda.is_available() else ("cuda-cuda",)
SHAPES = (
    {"B": 4, "H": 16, "S": 4000},
    {"B": 4, "H": 16, "S": 4000, "cache_dtype": torch.uint8},
    {"B": 3, "H": 8, "S": 900, "L": 256, "s_q": 2, "page_size": 48},
    {"B": 3, "H": 128, "S": 1000, "s_q": 2, "page_size": 16},
    {"B": 2, "H": 64, "S": 3000, "num_parts": 20, "batch_invariant": True},
    {"B": 2, "H": 5, "S": 300, "page_size": 1},
    {"B": 2, "H": 33, "S": 300, "page_size": None, "x_dtype": torch.float16, "cache_dtype": torch.float16},
    {"B": 3, "H": 20, "S": 500, "R": 0, "s_q": 3},
    {"B": 3, "H": 20, "S": 500, "L": 256, "s_q": 3, "page_size": 48},
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dims", SHAPES, ids=str)
def test_the_shapes_of_models_are_within_the_bound(make_runner, target, dims):
    run = make_runner("mla_decode", target)
    x = run.inputs(**dims)
    for got, (exact, error) in zip(run(x), run.spec.bound(x, run.accum(x)), strict=True):
        testing.assert_within(got, exact, error)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_graph_follows_the_lengths(make_runner, target, batch_invariant):
    """The schedule is made inside it."""
    run = make_runner("mla_decode", target)
    x = run.inputs(B=6, H=16, S=5000, hostile=False, batch_invariant=batch_invariant)

    def step() -> Any:
        with moela.use_backend(run.backend):
            schedule = moela.mla_schedule(
                x["seqlens"], rows=16, num_parts=60, batch_invariant=batch_invariant
            )
            return moela.mla_decode(**x | {"schedule": schedule})

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x["seqlens"].copy_(torch.randint(0, 5001, (6,), generator=g))
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert testing.same_bits(got, expected)
