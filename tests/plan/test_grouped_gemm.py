"""The plan of the CPU matrix products: what runs, and that waves, chunks and tasks cover the problems."""

import pytest
from moela.shapes import MODELS

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")

AVX512 = {"cols": 32, "dot_rows": 16}
AVX2 = {"cols": 16, "dot_rows": 6}
MAX_ROWS, MAX_WAVE_BYTES = 256, 8 << 20
EXPERTS = [3, 0, 700, 1, 0, 17, 256, 257, 16, 0]  # rows of each


def plan(num_rows, N=4096, bytes_per_row=28672, **shape):
    return _plan.plan_grouped_gemm(num_rows, N, bytes_per_row, **shape)


@pytest.mark.parametrize("shape", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_few_rows_are_dot_products_and_more_rows_a_panel(shape):
    for M in range(1, 40):
        [chunk] = plan([M], **shape).chunks
        assert chunk.path == ("dot" if M <= shape["dot_rows"] else "panel")


def test_every_expert_has_the_path_of_its_own_rows():
    paths = {c.problem: c.path for c in plan(EXPERTS, **AVX512).chunks}
    assert paths == {i: "dot" if n <= 16 else "panel" for i, n in enumerate(EXPERTS) if n}


def test_pairs_of_bfloat16_have_one_path_for_any_number_of_rows():
    shape = AVX512 | {"has_bf16": True}
    for M in (1, 16, 17, 300):
        for needs_panel in (False, True):
            chunks = plan([M], needs_panel=needs_panel, is_bf16=True, **shape).chunks
            assert {c.path for c in chunks} == {"bf16"}
        assert plan([M], **shape).chunks[0].path == ("dot" if M <= 16 else "panel")
        assert plan([M], is_bf16=True, **AVX512).chunks[0].path != "bf16"


def test_what_needs_the_panel_takes_it():
    assert plan([1], needs_panel=True, **AVX512).chunks[0].path == "panel"


@pytest.mark.parametrize("shape", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_chunks_cover_the_rows_and_are_of_nearly_equal_size(shape):
    for M in (*range(1, 600), 4095, 4096, 4097):
        chunks = plan([M], N=128, **shape).chunks
        sizes = [c.num_rows for c in chunks]
        assert len(chunks) == -(-M // MAX_ROWS)
        assert max(sizes) <= MAX_ROWS
        assert max(sizes) - min(sizes) <= 1
        assert [c.m0 for c in chunks] == [sum(sizes[:i]) for i in range(len(sizes))]
        assert sum(sizes) == M


def test_chunks_are_in_the_order_of_the_experts_and_none_is_empty():
    rows = dict.fromkeys(range(len(EXPERTS)), 0)
    last = -1
    for chunk in plan(EXPERTS, **AVX512).chunks:
        assert chunk.problem >= last
        assert chunk.num_rows > 0
        assert chunk.m0 == rows[chunk.problem]
        rows[chunk.problem] += chunk.num_rows
        last = chunk.problem
    assert list(rows.values()) == EXPERTS


@pytest.mark.parametrize("bytes_per_row", [64, 28672, MAX_WAVE_BYTES + 1])
def test_waves_cover_the_chunks_and_stay_within_their_memory(bytes_per_row):
    p = plan(EXPERTS, bytes_per_row=bytes_per_row, **AVX512)
    assert p.waves[0] == 0
    assert p.waves[-1] == len(p.chunks)
    for begin, end in zip(p.waves, p.waves[1:], strict=False):
        chunks = p.chunks[begin:end]
        assert chunks
        rows = sum(c.num_rows for c in chunks)
        assert rows <= p.rows_per_wave
        assert rows * bytes_per_row <= MAX_WAVE_BYTES or len(chunks) == 1
        assert [c.row_of_wave for c in chunks] == [
            sum(c.num_rows for c in chunks[:i]) for i in range(len(chunks))
        ]


def test_a_few_rows_of_many_experts_are_one_wave():
    assert plan([1] * 256, **AVX512).waves == [0, 256]


def test_tasks_cover_the_columns_of_every_layer_of_every_model():
    for model in MODELS.values():
        for layer in model.linear_layers().values():
            num_tasks = plan([1], N=layer.N, **AVX512).num_tasks
            assert (num_tasks - 1) * 32 < layer.N <= num_tasks * 32


def test_no_rows_and_no_columns_are_no_work():
    for empty in ([], [0], [0, 0]):
        p = plan(empty, **AVX512)
        assert (p.chunks, p.waves, p.rows_per_wave) == ([], [0], 0)
    assert plan([3], N=0, **AVX512).num_tasks == 0


def test_prints_what_will_run():
    assert repr(plan([300, 1], **AVX512)) == ("<301 rows, 1 dot, 2 panel chunks in 2 waves, 128 tasks each>")
