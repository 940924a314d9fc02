// Torch side of the CPU mla_decode: check, cut into parts, launch.
#include "cpu/mla_decode.h"

#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>

#include "common/expert_rows.h"
#include "common/mla_cache.h"
#include "common/mla_wave.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_decode";

void check_lengths(const Tensor& q, const Tensor& cache, const std::optional<Tensor>& block_table,
                   const Tensor& seqlens) {
  check_int32s(kOp, "seqlens", seqlens, q.size(0), "q");
  const int64_t page_size = cache.size(1);
  const int64_t capacity = page_size * (block_table ? block_table->size(1) : 1);
  for (int64_t b = 0; b < q.size(0); ++b) {
    const int64_t tokens = int32s(seqlens)[b];
    if (tokens < 0 || tokens > capacity)
      fail(kOp, "seqlens", "lengths within [0, " + std::to_string(capacity) + "]",
           std::to_string(tokens) + " at request " + std::to_string(b));
    if (!block_table || tokens == 0) continue;
    const int32_t* pages = int32s(*block_table) + b * block_table->stride(0);
    for (int64_t block = 0; block < (tokens + page_size - 1) / page_size; ++block)
      if (pages[block] < 0 || pages[block] >= cache.size(0))
        fail(kOp, "block_table", "pages within [0, " + std::to_string(cache.size(0) - 1) + "]",
             std::to_string(pages[block]) + " at request " + std::to_string(b) + ", block " +
                 std::to_string(block));
  }
}

void check(const Tensor& q, const Tensor& cache, const std::optional<Tensor>& block_table,
           const Tensor& seqlens, double sm_scale, int64_t v_dim) {
  using enum ScalarType;
  check_dim(kOp, "q", q, 4);
  check_dtype(kOp, "q", q.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "q", q);
  const int64_t B = q.size(0), D = q.size(3);
  if (v_dim < 1 || v_dim > D) fail(kOp, "v_dim", "a number within [1, " + std::to_string(D) + "]", v_dim);
  if (!std::isfinite(sm_scale)) fail(kOp, "sm_scale", "a finite number", sm_scale);
  check_dim(kOp, "cache", cache, 3);
  check_mla_cache_dtype(kOp, cache);
  if (is_of_bytes(cache) && v_dim % cpu::kMlaGroup != 0)
    fail(kOp, "v_dim", "a multiple of 128 because cache is uint8", v_dim);
  check_mla_rows(kOp, cache, v_dim, D - v_dim);
  check_cpu(kOp, "cache", cache, "q");
  if (block_table) {
    check_dim(kOp, "block_table", *block_table, 2);
    check_dtype(kOp, "block_table", block_table->scalar_type(), {Int});
    check_same(kOp, "block_table", "B", block_table->size(0), B, "q");
    check_last_dim_contiguous(kOp, "block_table", *block_table);
    check_cpu(kOp, "block_table", *block_table, "q");
  } else {
    check_same(kOp, "cache", "B", cache.size(0), B, "q");
  }
  check_lengths(q, cache, block_table, seqlens);
}

void launch(const Tensor& q, const Tensor& cache, const std::optional<Tensor>& block_table,
            const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal, Tensor& out, Tensor& lse) {
  const int64_t B = q.size(0), s_q = q.size(1);
  const cpu::MlaProblem p = mla_problem(q, q.stride(2), cache, sm_scale, v_dim, out, lse);
  std::vector<int32_t> page_of(block_table ? 0 : B);  // of a dense cache
  std::iota(page_of.begin(), page_of.end(), 0);
  const int32_t* pages = block_table ? int32s(*block_table) : page_of.data();
  const int64_t stride_tb = block_table ? block_table->stride(0) : 1;
  MlaWave wave(p);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t j = 0; j < s_q; ++j) {
      const int64_t seen = int32s(seqlens)[b] - (causal ? s_q - 1 - j : 0);
      wave.add(b * s_q + j, b * q.stride(0) + j * q.stride(1), cpu::keys_of_pages(pages, stride_tb, b, seen));
    }
  wave.run();
}

std::vector<int64_t> out_shape(const Tensor& q, int64_t v_dim) {
  return {q.size(0), q.size(1), q.size(2), v_dim};
}

std::tuple<Tensor, Tensor> mla_decode(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                                      const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal) {
  check(q, cache, block_table, seqlens, sm_scale, v_dim);
  Tensor out = empty_cpu(out_shape(q, v_dim), q.scalar_type());
  Tensor lse = empty_cpu({q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
  launch(q, cache, block_table, seqlens, sm_scale, v_dim, causal, out, lse);
  return {out, lse};
}

void mla_decode_out(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                    const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal, Tensor out,
                    Tensor lse) {
  check(q, cache, block_table, seqlens, sm_scale, v_dim);
  check_out("mla_decode_out", "out", out, q.scalar_type(), out_shape(q, v_dim));
  check_out("mla_decode_out", "lse", lse, ScalarType::Float, {q.size(0), q.size(1), q.size(2)});
  launch(q, cache, block_table, seqlens, sm_scale, v_dim, causal, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_decode", TORCH_BOX(&mla_decode));
  m.impl("mla_decode_out", TORCH_BOX(&mla_decode_out));
}

}  // namespace moela
