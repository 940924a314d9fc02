"""indexer_logits_paged: that it is indexer_logits over pages, what a query sees, and what is never read."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.reference._indexer_cache import parts
from moela.reference.indexer_logits_paged import keys_of_request
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

INF = float("inf")
GARBAGE = 2147480000


def one_by_one(run: Any, x: dict[str, Any]) -> Tensor:
    """The same by indexer_logits, request by request."""
    B, s_q = x["q"].shape[:2]
    rows = torch.full((B, s_q, x["max_seqlen"]), -INF, device=run.device)
    for b in range(B):
        arguments = (x[name] for name in ("cache", "block_table", "seqlens"))
        k, sf_k, num_keys = keys_of_request(*arguments, b, x["max_seqlen"])
        ke = (num_keys - torch.arange(s_q - 1, -1, -1, device=run.device)).int()
        with moela.use_backend(run.backend):
            rows[b, :, : k.size(0)] = moela.indexer_logits(
                x["q"][b], k, sf_k, x["weights"][b], torch.zeros_like(ke), ke
            )
    return rows


@pytest.mark.parametrize("page_size", [1, 3, 16, 64, 576])
@pytest.mark.parametrize("s_q", [1, 4])
def test_is_indexer_logits_of_each_request(run, page_size, s_q):
    x = run.inputs(B=3, S=130, H=20, s_q=s_q, D=40, page_size=page_size, extra=7)
    assert testing.same_bits(run(x)[0], one_by_one(run, x))


def test_queries_see_up_to_themselves_and_a_request_shorter_than_they_are_many(run):
    x = run.inputs(B=2, S=6, H=2, s_q=4, D=32, page_size=4, extra=2, hostile=False)
    seqlens = torch.tensor([6, 2], dtype=torch.int32, device=run.device)
    (logits,) = run(x | {"seqlens": seqlens})
    assert logits.isfinite().sum(-1).tolist() == [[3, 4, 5, 6], [0, 0, 1, 2]]
    assert (logits.isfinite() | (logits == -INF)).all()


def test_what_a_request_does_not_own_does_not_matter(run):
    """Garbage in the table beyond its pages, NaN in its last page beyond its tokens, and in other pages."""
    x = run.inputs(B=2, S=100, H=3, D=40, page_size=16, hostile=False)
    seqlens = torch.tensor([37, 0], dtype=torch.int32, device=run.device)
    (expected,) = run(x | {"seqlens": seqlens})
    cache, table = x["cache"].clone(), x["block_table"].clone()
    table[0, 3:], table[1] = GARBAGE, -5
    owned = torch.zeros(cache.shape[:2], dtype=torch.bool, device=run.device)
    owned[x["block_table"][0, :3].long()] = torch.arange(48, device=run.device).view(3, 16) < 37
    for part in parts(cache):
        part[~owned] = 0xFF
    (got,) = run(x | {"cache": cache, "block_table": table, "seqlens": seqlens})
    assert testing.same_bits(got, expected)
    assert got[0, 0, :37].isfinite().all()
    assert (got[1] == -INF).all()


def test_reads_what_indexer_cache_write_wrote(run):
    """In the order of the tokens, whatever the order of the pages; scale factors that are powers of two."""
    k = torch.randn(20, 128, generator=torch.Generator().manual_seed(0)).to(run.device)
    slots = torch.cat([torch.arange(32, 48), torch.arange(16, 20)]).to(run.device)
    cache = torch.full((3, 16, 132), 0xFF, dtype=torch.uint8, device=run.device)
    x = run.inputs(B=1, S=20, H=4, page_size=16, hostile=False)
    table = torch.tensor([[2, 1]], dtype=torch.int32, device=run.device)
    with moela.use_backend(run.backend):
        moela.indexer_cache_write(k, cache, slots, ue8m0=True)
    (got,) = run(x | {"cache": cache, "block_table": table})
    q, sf = moela.per_token_group_quant_fp8(k, ue8m0=True)
    zero, end = (torch.tensor([n], dtype=torch.int32, device=run.device) for n in (0, 20))
    with moela.use_backend(run.backend):
        expected = moela.indexer_logits(x["q"][0], q, sf.flatten(), x["weights"][0], zero, end)
    assert testing.same_bits(got[0], expected)


def test_a_request_does_not_depend_on_its_batch(run):
    x = run.inputs(B=4, S=150 if run.is_slow else 2500, H=17, D=40, page_size=16)
    (full,) = run(x)
    for order in ([3, 1, 0, 2], [2], [1, 1]):
        (part,) = run(x | {n: x[n][order] for n in ("q", "weights", "block_table", "seqlens")})
        assert testing.same_bits(part, full[order])


def test_compiles_once_for_every_length(op):
    """A decode step is one graph, however long the longest request has become."""
    spec = moela.ops.SPECS[op]
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(spec.public, fullgraph=True, backend=counter, dynamic=True)
    for extra in (0, 5, 11):
        x = spec.make_inputs(B=2, S=20, H=3, D=32, page_size=8, extra=extra)
        assert testing.same_bits(compiled(**x), spec.op(**x))
    assert counter.frame_count <= 2  # the first one sees a constant
