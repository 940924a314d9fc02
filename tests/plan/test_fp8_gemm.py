"""The plan of the CPU fp8_gemm: which kernel runs, and that tasks and chunks cover the problem."""

import pytest
from moela.shapes import MODELS

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")

AVX512 = {"cols": 32, "dot_rows": 16}
AVX2 = {"cols": 16, "dot_rows": 6}


@pytest.mark.parametrize("shape", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_few_rows_are_dot_products_and_more_rows_a_panel(shape):
    for M in range(1, 40):
        path = _plan.plan_fp8_gemm(M, 4096, **shape).path
        assert path == ("dot" if M <= shape["dot_rows"] else "panel")


def test_a_large_scale_factor_always_takes_the_panel():
    assert _plan.plan_fp8_gemm(1, 4096, has_large_sf=True, **AVX512).path == "panel"


@pytest.mark.parametrize("shape", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_chunks_cover_the_rows_and_are_of_nearly_equal_size(shape):
    for M in (*range(1, 600), 4095, 4096, 4097):
        plan = _plan.plan_fp8_gemm(M, 128, **shape)
        assert plan.num_chunks == -(-M // 252)
        assert plan.rows_per_chunk <= 252
        assert (plan.num_chunks - 1) * plan.rows_per_chunk < M <= plan.num_chunks * plan.rows_per_chunk


def test_tasks_cover_the_columns_of_every_layer_of_every_model():
    for model in MODELS.values():
        for layer in model.linear_layers().values():
            num_tasks = _plan.plan_fp8_gemm(1, layer.N, **AVX512).num_tasks
            assert (num_tasks - 1) * 32 < layer.N <= num_tasks * 32


def test_no_rows_and_no_columns_are_no_work():
    assert _plan.plan_fp8_gemm(0, 128, **AVX512).num_chunks == 0
    assert _plan.plan_fp8_gemm(3, 0, **AVX512).num_tasks == 0


def test_prints_what_will_run():
    assert repr(_plan.plan_fp8_gemm(300, 4096, **AVX512)) == "<panel, 2 x 150 rows, 128 tasks>"
