// Torch side of the CPU mla_decode: check, cut into parts, launch.
#include "cpu/mla_decode.h"

#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>

#include "common/cu_seqlens.h"
#include "common/mla_batch.h"
#include "common/mla_cache.h"
#include "common/mla_wave.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_decode";

// The arguments, but for what is written.
struct Arguments {
  const Tensor& q;
  const Tensor& cache;
  const std::optional<Tensor>& block_table;
  const Tensor& seqlens;
  double sm_scale;
  int64_t v_dim;
  bool causal;
  const std::optional<Tensor>& cu_seqlens_q;
  const std::optional<Tensor>& schedule;
  bool batch_invariant;

  int64_t D() const { return q.size(q.dim() - 1); }
  int64_t H() const { return q.size(q.dim() - 2); }
  int64_t B() const { return cu_seqlens_q ? cu_seqlens_q->size(0) - 1 : q.size(0); }
  std::vector<int64_t> lse_shape() const {
    std::vector<int64_t> shape = sizes_of(q);
    shape.pop_back();
    return shape;
  }
  std::vector<int64_t> out_shape() const {
    std::vector<int64_t> shape = lse_shape();
    shape.push_back(v_dim);
    return shape;
  }
};

void check(const Arguments& a) {
  using enum ScalarType;
  check_dim(kOp, "q", a.q, a.cu_seqlens_q ? 3 : 4);
  check_dtype(kOp, "q", a.q.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "q", a.q);
  if (a.cu_seqlens_q)
    check_cu_seqlens(kOp, "cu_seqlens_q", *a.cu_seqlens_q, *a.cu_seqlens_q, a.q.size(0), "q");
  const char* owner = a.cu_seqlens_q ? "cu_seqlens_q" : "q";
  if (a.v_dim < 1 || a.v_dim > a.D())
    fail(kOp, "v_dim", "a number within [1, " + std::to_string(a.D()) + "]", a.v_dim);
  if (!std::isfinite(a.sm_scale)) fail(kOp, "sm_scale", "a finite number", a.sm_scale);
  check_dim(kOp, "cache", a.cache, 3);
  check_mla_cache_dtype(kOp, a.cache);
  if (is_of_bytes(a.cache) && a.v_dim % cpu::kMlaGroup != 0)
    fail(kOp, "v_dim", "a multiple of 128 because cache is uint8", a.v_dim);
  check_mla_rows(kOp, a.cache, a.v_dim, a.D() - a.v_dim);
  check_cpu(kOp, "cache", a.cache, "q");
  if (a.block_table) {
    check_block_table(kOp, *a.block_table, "q");
    check_same(kOp, "block_table", "B", a.block_table->size(0), a.B(), owner);
  } else {
    check_same(kOp, "cache", "B", a.cache.size(0), a.B(), owner);
  }
  check_seqlens(kOp, a.seqlens, a.B(), a.cache, a.block_table);
  if (!a.schedule) return;
  if (a.cu_seqlens_q) fail(kOp, "schedule", "None because cu_seqlens_q is a tensor", "a tensor");
  check_schedule(kOp, *a.schedule, a.seqlens, a.q.size(1) * a.H(), a.batch_invariant);
}

// A schedule is not needed: keys are split at fixed places, and threads take parts as they get done.
void launch(const Arguments& a, Tensor& out, Tensor& lse) {
  const Tensor& q = a.q;
  const bool is_ragged = a.cu_seqlens_q.has_value();
  const int64_t B = a.B(), s_q = is_ragged ? 0 : q.size(1);
  const cpu::MlaProblem p = mla_problem(q, a.cache, a.sm_scale, a.v_dim, out, lse);
  const int32_t* bounds = is_ragged ? int32s(*a.cu_seqlens_q) : nullptr;
  std::vector<int32_t> page_of(a.block_table ? 0 : B);  // of a dense cache
  std::iota(page_of.begin(), page_of.end(), 0);
  const int32_t* pages = a.block_table ? int32s(*a.block_table) : page_of.data();
  const int64_t stride_tb = a.block_table ? a.block_table->stride(0) : 1;
  const auto first_of = [&](int64_t b) { return is_ragged ? bounds[b] : b * s_q; };
  const int64_t rows = mla_rows_of_part([&](int64_t most) {
    int64_t parts = 0;
    for (int64_t b = 0; b < B; ++b)
      parts +=
          mla_whole_parts_of(int32s(a.seqlens)[b]) * mla_groups_of(p.H, first_of(b + 1) - first_of(b), most);
    return parts;
  });
  MlaWave wave(p, rows);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t first = first_of(b), count = first_of(b + 1) - first;
    const int64_t q_offset = is_ragged ? first * p.stride_qt : b * q.stride(0);
    wave.add(first, q_offset, cpu::keys_of_pages(pages, stride_tb, b, int32s(a.seqlens)[b]), count, a.causal);
  }
  wave.run();
}

std::tuple<Tensor, Tensor> mla_decode(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                                      const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal,
                                      std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> schedule,
                                      bool batch_invariant) {
  const Arguments a = {q,     cache,  block_table,  seqlens,  sm_scale,
                       v_dim, causal, cu_seqlens_q, schedule, batch_invariant};
  check(a);
  Tensor out = empty_cpu(a.out_shape(), q.scalar_type());
  Tensor lse = empty_cpu(a.lse_shape(), ScalarType::Float);
  launch(a, out, lse);
  return {out, lse};
}

void mla_decode_out(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                    const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal,
                    std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> schedule, bool batch_invariant,
                    Tensor out, Tensor lse) {
  const Arguments a = {q,     cache,  block_table,  seqlens,  sm_scale,
                       v_dim, causal, cu_seqlens_q, schedule, batch_invariant};
  check(a);
  check_out("mla_decode_out", "out", out, q.scalar_type(), a.out_shape());
  check_out("mla_decode_out", "lse", lse, ScalarType::Float, a.lse_shape());
  launch(a, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_decode", TORCH_BOX(&mla_decode));
  m.impl("mla_decode_out", TORCH_BOX(&mla_decode_out));
}

}  // namespace moela
