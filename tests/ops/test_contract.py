"""What every op promises on every backend. Run one of them with `pytest -k "fp8_gemm and cpu"`."""

import inspect
import re
import sys
import warnings
from typing import Any

import bad_inputs
import pytest
import torch
from calls import results
from moela import testing
from moela.ops import SPECS, OpSpec
from moela.ops._spec import written_rows
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

POISON = 0xFF  # every float type reads NaN where all bytes are 0xFF

# Sizes with work for three threads of a compiled kernel, and sizes that Triton's interpreter can end with.
LARGE: dict[str, dict[str, Any]] = {
    "fp8_gemm": {"M": 70, "N": 520, "K": 1100, "out_dtype": torch.float32},
    "grouped_fp8_gemm": {"M": 130, "N": 300, "K": 700, "out_dtype": torch.float32},
    "grouped_fp8_gemm_masked": {"M": 70, "N": 300, "K": 700, "out_dtype": torch.float32},
    "grouped_gemm": {"M": 130, "N": 300, "K": 700, "a_dtype": torch.float32},
    "grouped_gemm_wgrad": {"M": 130, "N": 300, "K": 300, "a_dtype": torch.float32},
    "fused_experts": {"T": 70, "H": 520, "I": 200, "E": 6, "topk": 3, "w_dtype": torch.float8_e4m3fn},
    "indexer_cache_write": {"T": 300, "page_size": 16},
    "indexer_logits": {"T": 40, "S": 700, "H": 32},
    "indexer_logits_paged": {"B": 3, "S": 1100, "H": 32, "s_q": 2},
    "indexer_topk": {"T": 40, "S": 5000, "topk": 300, "ranges": True, "page_size": 64},
    "merge_states": {"T": 90, "H": 16, "D": 512},
    "mla_cache_write": {"T": 300, "L": 512, "R": 64, "page_size": 16, "cache_dtype": torch.uint8},
    "mla_norm_rope_cache_write": {
        "T": 300,
        "L": 512,
        "R": 64,
        "page_size": 16,
        "cache_dtype": torch.uint8,
    },
    "mla_decode": {"B": 3, "H": 40, "S": 1100, "s_q": 2, "x_dtype": torch.float32},
    "mla_schedule": {"B": 900, "S": 4096},
    "mla_prefill": {"T": 500, "H": 3, "x_dtype": torch.float32},
    "mla_prefill_backward": {"T": 500, "H": 3, "x_dtype": torch.float32},
    "mla_sparse": {"T": 4, "H": 40, "topk": 1300, "S": 1500, "x_dtype": torch.float32, "has_sink": True},
    "moe_topk": {"T": 700, "E": 256, "topk": 8, "scoring": "sigmoid", "has_bias": True, "renormalize": True},
    "ep_plan": {"T": 900, "topk": 6, "num_experts": 40, "num_ranks": 7},
    "moe_permute": {"T": 300, "H": 1100, "topk": 6, "num_experts": 40},
    "moe_unpermute": {"T": 300, "H": 1100, "topk": 6},
    "per_token_group_quant_fp8": {"M": 700, "K": 1100},
    "silu_and_mul": {"M": 700, "K": 1100, "limit": 7.0},
    "silu_and_mul_quant_fp8": {"M": 700, "K": 1100, "limit": 7.0, "alpha": 1.702},
    "per_block_quant_fp8": {"N": 700, "K": 1100},
    "per_block_dequant_fp8": {"N": 700, "K": 1100},
}
SMALL: dict[str, dict[str, Any]] = {
    "fp8_gemm": {"M": 19, "N": 40, "K": 200, "out_dtype": torch.float32},
    "grouped_fp8_gemm": {"M": 19, "N": 40, "K": 200, "out_dtype": torch.float32},
    "grouped_fp8_gemm_masked": {"M": 19, "N": 40, "K": 200, "out_dtype": torch.float32},
    "grouped_gemm": {"M": 19, "N": 40, "K": 200, "a_dtype": torch.float32},
    "grouped_gemm_wgrad": {"M": 19, "N": 40, "K": 72, "a_dtype": torch.float32},
    "fused_experts": {"T": 19, "H": 130, "I": 40, "E": 3, "topk": 2, "w_dtype": torch.float8_e4m3fn},
    "indexer_cache_write": {"T": 19, "D": 40, "page_size": 5, "num_pages": 60},
    "indexer_logits": {"T": 19, "S": 50, "H": 3, "D": 40},
    "indexer_logits_paged": {"B": 3, "S": 40, "H": 3, "s_q": 2, "D": 40, "page_size": 8, "extra": 3},
    "indexer_topk": {"T": 19, "S": 90, "topk": 12, "ranges": True, "page_size": 8, "requests": 5},
    "merge_states": {"T": 19, "H": 3, "D": 40},
    "mla_cache_write": {
        "T": 19,
        "L": 128,
        "R": 8,
        "page_size": 5,
        "num_pages": 60,
        "cache_dtype": torch.uint8,
    },
    "mla_norm_rope_cache_write": {
        "T": 19,
        "L": 128,
        "R": 8,
        "page_size": 5,
        "num_pages": 60,
        "cache_dtype": torch.uint8,
    },
    "mla_decode": {"B": 3, "H": 3, "S": 40, "L": 32, "R": 8, "page_size": 8, "x_dtype": torch.float32},
    "mla_schedule": {"B": 19, "S": 3000, "num_parts": 13},
    "mla_prefill": {"T": 19, "H": 2, "D": 24, "Dv": 16, "x_dtype": torch.float32},
    "mla_prefill_backward": {"T": 19, "H": 2, "D": 24, "Dv": 16, "x_dtype": torch.float32},
    "mla_sparse": {
        "T": 3,
        "H": 3,
        "topk": 40,
        "S": 50,
        "L": 32,
        "R": 8,
        "page_size": 8,
        "x_dtype": torch.float32,
        "has_sink": True,
        "has_length": True,
    },
    "moe_topk": {"T": 19, "E": 45, "topk": 4, "scoring": "sigmoid", "has_bias": True, "renormalize": True},
    "ep_plan": {"T": 19, "topk": 3, "num_experts": 7, "num_ranks": 4},
    "moe_permute": {"T": 19, "H": 200, "topk": 3, "num_experts": 7},
    "moe_unpermute": {"T": 19, "H": 200, "topk": 3},
    "per_token_group_quant_fp8": {"M": 19, "K": 200},
    "silu_and_mul": {"M": 19, "K": 200, "limit": 7.0},
    "silu_and_mul_quant_fp8": {"M": 19, "K": 200, "limit": 7.0, "alpha": 1.702},
    "per_block_quant_fp8": {"N": 130, "K": 200},
    "per_block_dequant_fp8": {"N": 130, "K": 200},
}
# Whose cache has pages that are one run of bytes.
HAS_PAGES_OF_BYTES = ("indexer_cache_write", "indexer_logits_paged")
# Rows at which a kernel may change its path: tiles of dot products, their last row, a panel tile, a chunk.
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 64, 65, 256, 257)
FEW_BATCHES = (1, 2, 5, 17)
EXTREMES = (float("nan"), float("inf"), 3e38, 1e-38, 0.0)  # what a row's neighbour may hold


def tensors(args: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in args.items() if isinstance(v, Tensor)}


def poisoned(run: Any, args: dict[str, Any]) -> dict[str, Any]:
    """The same values, with strided rows and NaN after the last row and the last column of every matrix."""
    extra = 16 if run.backend == "cuda" else 5  # TMA takes rows that start at multiples of 16 bytes

    def poison(name: str, t: Tensor) -> Tensor:
        if name == "cache" and run.spec.name in HAS_PAGES_OF_BYTES:
            return testing.poisoned_rows(t.flatten(1), extra_cols=extra).view(t.shape)
        if t.stride(-1) != 1 and t.stride(-2) == 1:
            return testing.poisoned_rows(t.mT, extra_cols=extra).mT
        return testing.poisoned_rows(t, extra_cols=extra)

    return args | {k: poison(k, v) for k, v in tensors(args).items() if v.dim() >= 2}


def empty_outputs(spec: OpSpec, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs that hold NaN, so that an element that is not written shows; of an op in place copies."""
    if spec.in_place:
        return {name: inputs[name].clone() for name in spec.outputs}
    outputs = dict(zip(spec.outputs, spec.empty(**inputs), strict=True))
    for out in outputs.values():
        out.view(torch.uint8).fill_(POISON)
    return outputs


def rows_of(spec: OpSpec, inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some rows of the batch; rows that are sorted by expert stay with theirs."""
    part = {n: inputs[n][rows] for n in spec.batch_args if inputs[n] is not None}
    if "expert_offsets" in inputs:
        part["expert_offsets"] = inputs["expert_offsets"].clamp(rows.start, rows.stop) - rows.start
    return inputs | part


def rows_dim(spec: OpSpec) -> str:
    """The dimension of make_inputs that counts rows: its first."""
    return next(iter(inspect.signature(spec.make_inputs).parameters))


def dims_that_count_rows(spec: OpSpec, dims: dict[str, Any]) -> list[tuple[str, int]]:
    """(argument, dimension) of the inputs that grow with the number of rows."""
    small, large = (tensors(spec.make_inputs(**dims | {rows_dim(spec): rows})) for rows in (5, 6))
    return [
        (name, dim)
        for name in small
        for dim in range(small[name].dim())
        if small[name].size(dim) != large[name].size(dim)
    ]


def assert_written(spec: OpSpec, inputs: dict[str, Any], outputs: dict[str, Tensor], expected: Any) -> None:
    """What an _out variant left in tensors of NaN: `expected`, and NaN still where it writes nothing."""
    outputs = tuple(outputs.values())
    if spec.written:
        [unwritten] = empty_outputs(spec, inputs).values()
        expected = (torch.where(written_rows(unwritten, *spec.written(**inputs)), expected[0], unwritten),)
    assert_same_bits(outputs, expected, "the out variant")


def assert_same_bits(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    for i, (x, y) in enumerate(zip(got, expected, strict=True)):
        assert testing.same_bits(x, y), f"{what}: output {i} differs"


def dims_for(run: Any) -> dict[str, Any]:
    return (SMALL if run.is_slow else LARGE)[run.spec.name]


def batch_inputs(run: Any) -> list[dict[str, Any]]:
    """A batch of each activation dtype that the op takes, larger than any in BATCHES."""
    M = max(FEW_BATCHES if run.is_slow else BATCHES) + 5
    K = 300 if run.is_slow else 700
    # float32 out: a rounding to bfloat16 would hide another order of the sum.
    if run.spec.name in ("fp8_gemm", "grouped_fp8_gemm"):
        dims = {"M": M, "N": 40, "K": K, "seed": 1, "out_dtype": torch.float32}
        return [run.inputs(**dims, a_dtype=d) for d in (torch.float8_e4m3fn, torch.bfloat16, torch.float32)]
    if run.spec.name == "grouped_gemm":
        dims = {"M": M, "N": 40, "K": K, "seed": 1}
        return [run.inputs(**dims, a_dtype=d) for d in (torch.bfloat16, torch.float32)]
    if run.spec.name == "fused_experts":
        # float32, as above. Biases, so that they belong to the right rows.
        dims = {"T": M, "H": 130, "I": 40, "E": 3, "x_dtype": torch.float32, "bias": True, "seed": 1}
        fp8 = {"w_dtype": torch.float8_e4m3fn}
        kinds = [{}, fp8, fp8 | {"quantize_activations": "fp8"}, fp8 | {"x_dtype": torch.bfloat16}]
        return [run.inputs(**dims | kind) for kind in kinds[run.is_slow :]]
    if run.spec.name.startswith("indexer_"):  # of one activation dtype
        return [run.inputs(**SMALL[run.spec.name] | {rows_dim(run.spec): M, "seed": s}) for s in (1, 2)]
    dims = SMALL[run.spec.name] | {rows_dim(run.spec): M, "seed": 1}
    return [run.inputs(**dims | {"x_dtype": d}) for d in (torch.bfloat16, torch.float32)]


def test_equals_the_definition_within_its_bound_and_writes_every_element(run, case):
    inputs = run.inputs(**case)
    contiguous = run.public(inputs)
    # The public function calls the op, and strided inputs go into the _out variant below: in the interpreter
    # two calls have to do.
    functional = contiguous if run.is_slow else run(poisoned(run, inputs))
    bounds = run.spec.bound(inputs, run.accum(inputs))
    for name, got, (exact, error) in zip(run.spec.outputs, functional, bounds, strict=True):
        testing.assert_within(got, exact, error, f"{run.spec.name}.{name}")
        assert run.spec.in_place or got.is_contiguous()
    outputs = empty_outputs(run.spec, inputs)
    run.out(poisoned(run, inputs), outputs)
    assert_written(run.spec, inputs, outputs, functional)
    assert_same_bits(contiguous, functional, "contiguous inputs, the public function")


def test_has_the_same_bits_in_every_run(run):
    inputs = run.inputs(**dims_for(run))
    first = run(inputs)
    for _ in range(1 if run.is_slow else 3):
        assert_same_bits(run(inputs), first, "another run")


def test_has_the_same_bits_for_any_number_of_threads(run):
    inputs = run.inputs(**dims_for(run))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2) if run.is_slow else (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(run(inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same_bits(result, results[0], "more threads")


def test_a_row_does_not_depend_on_its_batch(batch_run):
    for inputs in batch_inputs(batch_run):
        full = batch_run(inputs)
        for M in FEW_BATCHES if batch_run.is_slow else BATCHES:
            for start in (3,) if batch_run.is_slow else (0, 3):
                part = batch_run(rows_of(batch_run.spec, inputs, slice(start, start + M)))
                assert_same_bits(
                    part, tuple(t[start : start + M] for t in full), f"{M} rows from row {start}"
                )


def test_a_row_does_not_depend_on_what_its_neighbours_hold(batch_run):
    for inputs in batch_inputs(batch_run)[1:]:  # float8 holds none of these values
        for M in (5,) if batch_run.is_slow else (2, 6, 13, 65):
            batch = rows_of(batch_run.spec, inputs, slice(0, M))
            expected = batch_run(batch)
            for value in EXTREMES:
                name = batch_run.spec.batch_args[0]
                spoiled = batch[name].clone()
                spoiled[M // 2] = value
                got = batch_run(batch | {name: spoiled})
                keep = [i for i in range(M) if i != M // 2]
                assert_same_bits(
                    tuple(t[keep] for t in got), tuple(t[keep] for t in expected), f"beside {value}"
                )


def test_no_rows_give_an_empty_result_and_a_sum_over_them_zeros(run):
    inputs = run.inputs(**SMALL[run.spec.name] | {rows_dim(run.spec): 0})
    if run.spec.in_place:
        assert_same_bits(run(inputs), run.spec.empty(**inputs), "nothing to write")
        return
    for got, want in zip(run(inputs), run.spec.empty(**inputs), strict=True):
        assert got.shape == want.shape
        rows = got[1:] if run.spec.name == "mla_schedule" else got  # its header says what it was made with
        assert not rows.double().any()  # nothing there, or offsets of 0


def test_leaves_its_inputs_unchanged(run):
    inputs = poisoned(run, run.inputs(**SMALL[run.spec.name]))
    before = {k: v._base.clone() if v._base is not None else v.clone() for k, v in tensors(inputs).items()}
    run(inputs)
    run.out(inputs, empty_outputs(run.spec, inputs))
    for name, t in tensors(inputs).items():
        assert testing.same_bits(t._base if t._base is not None else t, before[name]), name


@pytest.mark.skipif(sys.platform == "win32", reason="needs mmap and mprotect")
def test_touches_no_byte_outside_its_tensors(run, case, guarded):
    if run.device != "cpu":
        pytest.skip("the guard pages are host memory")
    inputs = run.inputs(**case)
    expected = None  # the bits of both are the same; that they are right, the first test says
    for at_end in (True, False):
        args = inputs | {k: guarded(v, at_end) for k, v in tensors(inputs).items()}
        outputs = {k: guarded(v, at_end) for k, v in empty_outputs(run.spec, inputs).items()}
        run.out(args, outputs)
        expected = expected or tuple(t.clone() for t in outputs.values())
        assert_written(run.spec, inputs, outputs, expected)


def test_takes_scale_factors_of_any_strides(sf_run):
    inputs = sf_run.inputs(**SMALL[sf_run.spec.name])
    names = [n for n in tensors(inputs) if n.startswith("sf")]
    expected = sf_run(inputs)
    transposed = {n: inputs[n].mT.contiguous().mT for n in names if inputs[n].dim() > 1}
    every_third = {n: inputs[n].repeat_interleave(3, -1)[..., ::3] for n in names}
    assert_same_bits(sf_run(inputs | transposed), expected, "transposed scale factors")
    assert_same_bits(sf_run(inputs | every_third), expected, "strided scale factors")


def test_takes_unaligned_inputs(run):
    """A view that starts one element into its storage, as a slice of a checkpoint does."""
    inputs = run.inputs(**SMALL[run.spec.name])

    def shifted(t: Tensor) -> Tensor:
        return torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape)

    assert_same_bits(
        run(inputs | {k: shifted(t) for k, t in tensors(inputs).items()}), run(inputs), "unaligned inputs"
    )


def message_of(spec: OpSpec, bad: bad_inputs.Bad) -> str:
    is_output = bad.message.split(":")[0] in spec.outputs and not spec.in_place
    return f"{spec.name}{'_out' * is_output}: {bad.message}"


def refuse(run: Any, bad: bad_inputs.Bad) -> str:
    inputs = run.inputs(**bad_inputs.GOOD[run.spec.name])
    if not bad.is_out:
        with pytest.raises(ValueError, match="expected") as error:
            run(bad.spoil(inputs))
        return str(error.value)
    args = bad.spoil(inputs | empty_outputs(run.spec, inputs))
    outputs = {name: args.pop(name) for name in run.spec.outputs}
    with pytest.raises(ValueError, match="expected") as error:
        run.out(args, outputs)
    return str(error.value)


def test_names_the_argument_that_is_wrong(run, bad):
    assert refuse(run, bad) == message_of(run.spec, bad)


def test_takes_what_the_bad_inputs_were_made_of(run):
    """Without this the test above could pass on arguments that were never good."""
    inputs = run.inputs(**bad_inputs.GOOD[run.spec.name])
    run(inputs)
    run.out(inputs, empty_outputs(run.spec, inputs))


def test_names_the_argument_that_is_on_another_device(run):
    inputs = run.inputs(**bad_inputs.GOOD[run.spec.name])
    first, *others = tensors(inputs)
    device = inputs[first].device
    for name in others:
        with pytest.raises(ValueError, match=f"{name}: expected device") as error:
            run(inputs | {name: inputs[name].to("meta")})
        expected = f"expected device {device} (that of {first}), got meta; move {name} there"
        assert str(error.value) == f"{run.spec.name}: {name}: {expected}"


# What torch.compile sees. It does not trace inside use_backend, so these take the default backend.


def test_fake_tensors_have_the_metadata_of_real_ones(op, case):
    spec = SPECS[op]
    inputs = spec.make_inputs(**case)
    real = results(spec, spec.op, inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        faked = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        fake = results(spec, spec.op, faked)
    of_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in inputs.items()}
    meta = results(spec, spec.op, of_meta)
    for f, m, r in zip(fake, meta, real, strict=True):
        assert (f.shape, f.dtype, f.stride(), f.device) == (r.shape, r.dtype, r.stride(), r.device)
        assert (m.shape, m.dtype, m.stride(), m.device.type) == (r.shape, r.dtype, r.stride(), "meta")


def test_passes_the_checks_of_torch(op):
    spec = SPECS[op]
    inputs = spec.make_inputs(**SMALL[op])
    utils = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    # torch's test_schema cannot compare float8 inputs; test_leaves_its_inputs_unchanged compares their bytes.
    is_float8 = any(t.dtype == torch.float8_e4m3fn for t in tensors(inputs).values())
    torch.library.opcheck(spec.op, (), inputs, test_utils=utils + ["test_schema"] * (not is_float8))
    args = {k: v for k, v in inputs.items() if k != spec.dtype_arg}
    torch.library.opcheck(spec.out_op, (), args | empty_outputs(spec, inputs), test_utils=utils)


# inductor begins with what aot_eager does.
@pytest.mark.parametrize("backend", [pytest.param("aot_eager", marks=pytest.mark.thorough), "inductor"])
def test_compiles_as_one_graph_for_every_number_of_rows(op, backend):
    spec, dims = SPECS[op], SMALL[op]
    counter = CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    compiled = torch.compile(spec.public, fullgraph=True, backend=counter)
    for size in (19, 2, 64, 127):  # N stays within one block, so that scale factors keep their shape
        inputs = spec.make_inputs(**dims | {rows_dim(spec): size})
        for name, dim in dims_that_count_rows(spec, dims):
            torch._dynamo.mark_dynamic(inputs[name], dim)
        expected = results(spec, spec.op, inputs)
        assert_same_bits(results(spec, compiled, inputs), expected, f"compiled, {size} rows")
    assert counter.frame_count == 1


def test_compiled_code_can_use_the_out_variant(op):
    spec = SPECS[op]
    inputs = spec.make_inputs(**SMALL[op])
    args = {k: v for k, v in inputs.items() if k != spec.dtype_arg}
    outputs = empty_outputs(spec, inputs)
    torch._dynamo.reset()
    torch.compile(lambda **kwargs: spec.out_op(**kwargs), fullgraph=True, backend="aot_eager")(
        **(args | outputs)
    )
    assert_written(spec, inputs, outputs, results(spec, spec.op, inputs))


# --- autograd --------------------------------------------------------------------------------------------


def test_backward_gives_the_derivative_or_says_that_there_is_none(op):
    """Never torch's own answer, a warning and no gradient. The bias of moe_topk is for the choice only."""
    spec = SPECS[op]
    inputs = spec.make_inputs(**SMALL[op])
    for name in [k for k, v in inputs.items() if isinstance(v, Tensor) and v.dtype.is_floating_point]:
        tracked = inputs | {name: inputs[name].clone().requires_grad_()}
        if spec.in_place:
            with pytest.raises(NotImplementedError, match=f"^{op}: has no derivative; call it under"):
                spec.op(**tracked)
            continue
        every = results(spec, spec.op, tracked)
        recorded = [r for r in every if r.requires_grad]
        assert recorded or not any(r.is_floating_point() for r in every), name  # integers never have one
        for result in recorded:
            said = ""
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    result.backward(torch.ones_like(result), retain_graph=True)
                except NotImplementedError as error:
                    said = str(error)
            has_gradient = tracked[name].grad is not None or (op, name) == ("moe_topk", "bias")
            assert has_gradient or re.match(rf"{op}: (\w+: )?has no derivative", said), said
