"""moe_permute: the order of the rows, what is dropped, and what goes along."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from torch import Tensor

I32, I64 = torch.int32, torch.int64


def permute(run: Any, x: Tensor, ids: Tensor | list, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.as_tensor(ids, dtype=None if isinstance(ids, Tensor) else I32)
    args = {"x": x.to(run.device), "topk_ids": ids.to(run.device), "num_experts": num_experts}
    return tuple(t.cpu() for t in run(args))


def numbered(T: int, H: int = 4) -> Tensor:
    """Row t holds t + 1."""
    return (torch.arange(T) + 1.0)[:, None].expand(T, H).contiguous()


def brute_force(ids: list[list[int]], num_experts: int) -> tuple[list[int], list[int], list[list[int]]]:
    """(the token of each row that has one, expert_offsets, inverse), by a sort of tuples."""
    pairs = [(e, t, j) for t, row in enumerate(ids) for j, e in enumerate(row) if 0 <= e < num_experts]
    pairs.sort()
    inverse = [[-1] * len(row) for row in ids]
    for position, (_, t, j) in enumerate(pairs):
        inverse[t][j] = position
    offsets = [sum(e < expert for e, _, _ in pairs) for expert in range(num_experts + 1)]
    return [t for _, t, _ in pairs], offsets, inverse


def assert_sorted(run: Any, ids: Tensor, num_experts: int) -> None:
    x_sorted, offsets, inverse = permute(run, numbered(len(ids)), ids, num_experts)
    tokens, expected_offsets, expected_inverse = brute_force(ids.tolist(), num_experts)
    dropped = ids.numel() - len(tokens)
    assert x_sorted[:, 0].tolist() == [t + 1.0 for t in tokens] + [0.0] * dropped
    assert offsets.tolist() == expected_offsets
    assert inverse.tolist() == expected_inverse


def test_the_example_of_the_documentation(run):
    x_sorted, offsets, inverse = permute(run, numbered(3), [[2, 0], [0, 7], [2, 2]], 4)
    assert x_sorted[:, 0].tolist() == [1, 2, 1, 3, 3, 0]
    assert offsets.tolist() == [0, 2, 2, 5, 5]
    assert inverse.tolist() == [[2, 0], [1, -1], [3, 4]]


@pytest.mark.parametrize("ids_dtype", [I32, I64], ids=str)
@pytest.mark.parametrize(
    ("T", "topk", "num_experts"),
    [(1, 1, 1), (1, 8, 512), (40, 8, 256), (130, 2, 3), (33, 1, 7), (257, 1, 1), (40, 16, 31)],
)
def test_sorts_by_expert_then_token_then_slot(run, T, topk, num_experts, ids_dtype):
    assert_sorted(
        run,
        run.inputs(T=T, H=4, topk=topk, num_experts=num_experts, ids_dtype=ids_dtype)["topk_ids"].cpu(),
        num_experts,
    )


def test_all_pairs_may_go_to_one_expert_or_nowhere(run):
    for expert in (0, 5, 6, -1):
        assert_sorted(run, torch.full((30, 9), expert, dtype=I32), 6)


def test_ids_out_of_range_are_dropped_whatever_their_size(run):
    strange = [-1, 4, 2**32, 2**32 + 1, -(2**63), 2**63 - 1, -(2**32), 3]
    assert_sorted(run, torch.tensor([strange, strange[::-1]]), 4)
    assert_sorted(run, torch.tensor([[-1, 4, -(2**31), 2**31 - 1, 3]], dtype=I32), 4)


def test_the_order_does_not_depend_on_where_a_block_of_the_sort_ends(run):
    """The pairs of one expert stay in order across all of them."""
    ids = torch.arange(600, dtype=I32).remainder(2).view(100, 6)
    _, offsets, inverse = permute(run, numbered(100, 1), ids, 2)
    assert offsets.tolist() == [0, 300, 600]
    assert torch.equal(
        inverse.view(300, 2), torch.stack([torch.arange(300), torch.arange(300, 600)], 1).int()
    )


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float8_e4m3fn,
        torch.float8_e8m0fnu,
        I32,
        torch.uint8,
    ],
    ids=str,
)
def test_moves_the_bytes_of_every_dtype(run, dtype):
    """Whatever they mean: NaN with any payload, subnormals, -0. Rows without a pair are zero bytes."""
    g = torch.Generator().manual_seed(2)
    data = torch.randint(256, (9, 24), generator=g, dtype=torch.uint8)
    ids = torch.randint(-1, 5, (9, 3), generator=g, dtype=I32)
    x_sorted, offsets, inverse = permute(run, data.view(dtype), ids, 5)
    rows = x_sorted.view(torch.uint8)
    for t, slots in enumerate(inverse.tolist()):
        for row in slots:
            assert row == -1 or torch.equal(rows[row], data[t])
    assert not rows[offsets[-1] :].any()


def test_large_results_are_copied_whole(run):
    """Large enough to be written past the caches, in rows that end anywhere in a line."""
    T, H, topk = (5, 4201, 3) if run.is_slow else (900, 4201, 3)
    inputs = run.inputs(T=T, H=H, topk=topk, num_experts=9, x_dtype=torch.uint8)
    x_sorted, offsets, inverse = run(inputs)
    named = inverse.flatten()[inverse.flatten() >= 0].long()
    pairs = (inverse.flatten() >= 0).nonzero().flatten()
    assert torch.equal(x_sorted[named], inputs["x"][pairs // topk])
    assert not x_sorted[offsets[-1] :].any()


def test_scale_factors_go_along_by_a_second_call(run):
    """A quantized row and its scale factors land in the same row: dequantizing and sorting commute."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(-1, 6, (10, 3), generator=g, dtype=I32)
    q, sf = moela.reference.per_token_group_quant_fp8(torch.randn(10, 256, generator=g), 128)
    x = q.float() * sf.repeat_interleave(128, 1)
    q_sorted, sf_sorted, x_sorted = (permute(run, t, ids, 6)[0] for t in (q, sf, x))
    assert torch.equal(q_sorted.float() * sf_sorted.repeat_interleave(128, 1), x_sorted)


@pytest.mark.parametrize("num_experts", [1, 5, 128, 512])
def test_unpermute_brings_every_row_back(run, make_runner, num_experts):
    """Small integers, so that sums are exact: a row times the number of its pairs that were not dropped."""
    inputs = run.inputs(T=20, H=36, topk=4, num_experts=num_experts, x_dtype=torch.float32)
    x_sorted, _, inverse = run(inputs)
    back = make_runner("moe_unpermute", f"{run.backend}-{run.device}")
    (out,) = back({"y": x_sorted, "topk_weights": None, "inverse": inverse})
    kept = (inverse >= 0).sum(1, keepdim=True)
    assert torch.equal(out, inputs["x"] * kept)


def test_the_derivative_is_the_sum_over_a_tokens_rows(run):
    inputs = run.inputs(T=7, H=10, topk=3, num_experts=4, x_dtype=torch.float32)
    x = inputs["x"].requires_grad_()
    with moela.use_backend(run.backend):
        x_sorted, offsets, inverse = run.spec.op(**inputs)
        grad = torch.randn(x_sorted.shape, generator=torch.Generator().manual_seed(4)).to(run.device)
        grad[offsets[-1] :] = float("nan")  # rows that no token has
        x_sorted.backward(grad)
    exact = torch.zeros(7, 10, dtype=torch.float64)
    for t, slots in enumerate(inverse.tolist()):
        exact[t] = sum((grad[row].double().cpu() for row in slots if row >= 0), exact[t])
    torch.testing.assert_close(x.grad.double().cpu(), exact, rtol=1e-6, atol=1e-6)


def test_a_layer_of_experts_compiles_with_its_derivative_as_one_graph(op):
    """Route, permute, scale each expert's rows, unpermute: against the same in plain torch."""
    g = torch.Generator().manual_seed(5)
    x, logits, scales = (torch.randn(n, generator=g) for n in ((6, 8), (6, 5), (5,)))

    def layer(x: Tensor, logits: Tensor) -> Tensor:
        weights, ids = moela.moe_topk(logits, 2, renormalize=True)
        x_sorted, offsets, inverse = moela.moe_permute(x, ids, 5)
        expert = torch.searchsorted(offsets[1:], torch.arange(12, dtype=I32), right=True)
        return moela.moe_unpermute(x_sorted * scales[expert, None], weights, inverse)

    def in_torch(x: Tensor, logits: Tensor) -> Tensor:
        values, ids = logits.topk(2)
        return x * (values.softmax(-1) * scales[ids]).sum(-1, keepdim=True)

    def gradients(function: Any) -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), logits.clone().requires_grad_()
        y = function(*leaves)
        (y * y).sum().backward()
        return y.detach(), leaves[0].grad, leaves[1].grad

    torch._dynamo.reset()
    compiled = gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"))
    for got, eager, expected in zip(compiled, gradients(layer), gradients(in_torch), strict=True):
        assert testing.same_bits(got, eager)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
