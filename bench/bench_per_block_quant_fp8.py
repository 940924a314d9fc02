"""The cast of a model's weights to FP8."""

from collections.abc import Iterator

from moela.bench.suite import Bench, Inputs, Part, in_torch, row_parts
from moela.shapes import LinearShape


def dims(layer: LinearShape, tokens: int, dtype: str) -> dict[str, object]:
    return {"N": layer.N, "K": layer.K}


def parts(inputs: Inputs) -> Iterator[Part]:
    """Rows of w, with their scale factors."""
    for rows, sf_rows in row_parts(*inputs["w"].shape):
        part = inputs | {"w": inputs["w"][rows]}
        yield part, lambda outputs, rows=rows, sf_rows=sf_rows: (outputs[0][rows], outputs[1][sf_rows])


BENCH = Bench(
    op="per_block_quant_fp8",
    dtypes=("bf16",),
    has_tokens=False,
    dims=dims,
    item_bytes=lambda dtype: {"w_bytes": 2},
    parts=parts,
    baselines=in_torch("per_block_quant_fp8"),
)


def bench_per_block_quant_fp8(benchmark, contestant):
    benchmark(contestant)
