"""mla_sparse on a GPU: the shapes of models, few tokens, whose entries are cut into pieces, and many."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.reference._mla_cache import decode

TARGETS = ("cuda-cuda", "triton-cuda") if torch.cuda.is_available() else ("cuda-cuda",)
BYTES = torch.uint8
SHAPES = (
    {"T": 1, "H": 128, "topk": 2048, "S": 4000, "cache_dtype": BYTES},
    {"T": 9, "H": 64, "topk": 2048, "S": 4000, "cache_dtype": BYTES, "has_sink": True},
    {"T": 150, "H": 128, "topk": 300, "S": 4000, "cache_dtype": BYTES, "has_length": True},
    {"T": 150, "H": 128, "topk": 300, "S": 4000, "has_length": True, "has_sink": True},
    {"T": 3, "H": 16, "topk": 2048, "S": 3000, "page_size": 61},
    {"T": 4, "H": 20, "topk": 700, "S": 900, "L": 256},
    {"T": 4, "H": 33, "topk": 700, "S": 900, "R": 0, "x_dtype": torch.float16, "cache_dtype": torch.float16},
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dims", SHAPES, ids=str)
def test_the_shapes_of_models_are_within_the_bound(make_runner, target, dims):
    run = make_runner("mla_sparse", target)
    x = run.inputs(**dims)
    for got, (exact, error) in zip(run(x), run.spec.bound(x, run.accum(x)), strict=True):
        testing.assert_within(got, exact, error)


def test_rows_of_bytes_have_the_bits_of_a_bfloat16_cache_of_the_rounded_rows(make_runner):
    run = make_runner("mla_sparse", "cuda-cuda")
    x = run.inputs(T=5, H=70, topk=1000, S=900, cache_dtype=BYTES)
    rounded = decode(x["cache"], x["v_dim"]).bfloat16()
    for got, expected in zip(run(x), run(x | {"cache": rounded}), strict=True):
        assert testing.same_bits(got, expected)


@pytest.mark.parametrize("target", TARGETS)
def test_a_graph_follows_the_indices_and_the_lengths(make_runner, target):
    run = make_runner("mla_sparse", target)
    x = run.inputs(T=6, H=16, topk=2048, S=5000, cache_dtype=BYTES, has_length=True, hostile=False)

    def step() -> Any:
        with moela.use_backend(run.backend):
            return moela.mla_sparse(**x)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x["indices"].copy_(torch.randint(-1, 5000, (6, 2048), generator=g))
        x["topk_length"].copy_(torch.randint(0, 2049, (6,), generator=g))
        graph.replay()
        for got, expected in zip(captured, step(), strict=True):
            assert testing.same_bits(got, expected)
