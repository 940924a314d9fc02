"""The expansion of a model's FP8 weights to bfloat16."""

from collections.abc import Iterator

from moela.bench.suite import Bench, Inputs, Part, in_torch, row_parts
from moela.shapes import LinearShape


def dims(layer: LinearShape, tokens: int, dtype: str) -> dict[str, object]:
    return {"N": layer.N, "K": layer.K}


def parts(inputs: Inputs) -> Iterator[Part]:
    """Rows of q, with their scale factors."""
    for rows, sf_rows in row_parts(*inputs["q"].shape):
        part = inputs | {"q": inputs["q"][rows], "sf": inputs["sf"][sf_rows]}
        yield part, lambda outputs, rows=rows: (outputs[0][rows],)


BENCH = Bench(
    op="per_block_dequant_fp8",
    dtypes=("bf16",),
    has_tokens=False,
    dims=dims,
    item_bytes=lambda dtype: {"w_bytes": 2},
    parts=parts,
    baselines=in_torch("per_block_dequant_fp8"),
)


def bench_per_block_dequant_fp8(benchmark, contestant):
    benchmark(contestant)
