// Torch side of the CPU mla_sparse: check, find the slots that rows name, launch.
#include "cpu/mla_sparse.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "common/expert_rows.h"
#include "common/mla_wave.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_sparse";

struct Args {
  const Tensor& q;
  const Tensor& cache;
  const Tensor& indices;
  double sm_scale;
  int64_t v_dim;
  const std::optional<Tensor>& attn_sink;
  const std::optional<Tensor>& topk_length;

  int64_t H() const { return q.size(q.dim() - 2); }
  int64_t D() const { return q.size(q.dim() - 1); }
  int64_t topk() const { return indices.size(indices.dim() - 1); }
  // [..., then `last`].
  std::vector<int64_t> shape(std::initializer_list<int64_t> last) const {
    std::vector<int64_t> shape = sizes_of(q);
    shape.resize(shape.size() - 2);
    shape.insert(shape.end(), last);
    return shape;
  }
};

// The rows of a call: which entries of each count.
struct Rows {
  explicit Rows(const Args& a)
      : indices(a.indices, 1), topk(a.topk()), lengths(indices.count, static_cast<int32_t>(topk)) {
    if (!a.topk_length) return;
    const FlatRows of_rows(*a.topk_length, 0);
    for (int64_t row = 0; row < indices.count; ++row)
      lengths[row] = int32s(of_rows.tensor)[row * of_rows.stride];
  }
  const int32_t* entries(int64_t row) const { return int32s(indices.tensor) + row * indices.stride; }

  FlatRows indices;
  int64_t topk;
  std::vector<int32_t> lengths;
};

void check_rows(const Rows& rows, int64_t num_slots) {
  const auto where = [](int32_t value, int64_t row) {
    return std::to_string(value) + " at row " + std::to_string(row);
  };
  for (int64_t row = 0; row < rows.indices.count; ++row)
    if (rows.lengths[row] < 0 || rows.lengths[row] > rows.topk)
      fail(kOp, "topk_length", "lengths within [0, " + std::to_string(rows.topk) + "]",
           where(rows.lengths[row], row));
  for (int64_t row = 0; row < rows.indices.count; ++row) {
    const int32_t* entries = rows.entries(row);
    int32_t largest = -1;
    for (int64_t e = 0; e < rows.lengths[row]; ++e) largest = entries[e] > largest ? entries[e] : largest;
    for (int64_t e = 0; largest >= num_slots; ++e)
      if (entries[e] >= num_slots)
        fail(kOp, "indices", "slots below " + std::to_string(num_slots),
             where(entries[e], row) + ", entry " + std::to_string(e));
  }
}

void check(const Args& a) {
  using enum ScalarType;
  check_min_dim(kOp, "q", a.q, 2);
  check_dtype(kOp, "q", a.q.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "q", a.q);
  if (a.v_dim < 1 || a.v_dim > a.D())
    fail(kOp, "v_dim", "a number within [1, " + std::to_string(a.D()) + "]", a.v_dim);
  if (!std::isfinite(a.sm_scale)) fail(kOp, "sm_scale", "a finite number", a.sm_scale);
  check_dim(kOp, "cache", a.cache, 3);
  check_mla_cache_dtype(kOp, a.cache);
  if (is_of_bytes(a.cache) && a.v_dim % cpu::kMlaGroup != 0)
    fail(kOp, "v_dim", "a multiple of 128 because cache is uint8", a.v_dim);
  check_mla_rows(kOp, a.cache, a.v_dim, a.D() - a.v_dim);
  check_cpu(kOp, "cache", a.cache, "q");
  check_min_dim(kOp, "indices", a.indices, 1);
  check_dtype(kOp, "indices", a.indices.scalar_type(), {Int});
  check_shape(kOp, "indices", a.indices, a.shape({a.topk()}));
  check_last_dim_contiguous(kOp, "indices", a.indices);
  check_cpu(kOp, "indices", a.indices, "q");
  if (a.attn_sink) {
    check_dtype(kOp, "attn_sink", a.attn_sink->scalar_type(), {Float});
    check_shape(kOp, "attn_sink", *a.attn_sink, {a.H()});
    check_cpu(kOp, "attn_sink", *a.attn_sink, "q");
  }
  if (a.topk_length) {
    check_dtype(kOp, "topk_length", a.topk_length->scalar_type(), {Int});
    check_shape(kOp, "topk_length", *a.topk_length, a.shape({}));
    check_cpu(kOp, "topk_length", *a.topk_length, "q");
  }
  check_rows(Rows(a), a.cache.size(0) * a.cache.size(1));
}

void launch(const Args& a, Tensor& out, Tensor& lse) {
  const Rows rows(a);
  if (rows.indices.count == 0 || a.H() == 0) return;
  const FlatRows q(a.q, 2);
  const std::optional<Float32View> sinks =
      a.attn_sink ? std::optional<Float32View>(*a.attn_sink) : std::nullopt;
  cpu::MlaProblem p = mla_problem(q.tensor, a.cache, a.sm_scale, a.v_dim, out, lse);
  if (sinks) p.attn_sink = sinks->data();
  // The slots of as many rows as are run at a time.
  constexpr int64_t kMostSlots = int64_t{1} << 20;
  const int64_t at_a_time =
      std::clamp<int64_t>(kMostSlots / std::max<int64_t>(rows.topk, 1), 1, rows.indices.count);
  const Scratch<int32_t> slots(at_a_time * rows.topk);
  const int64_t parts = rows.indices.count * mla_whole_parts_of(rows.topk);
  MlaWave wave(p, mla_rows_of_part([&](int64_t most) { return parts * mla_groups_of(p.H, 1, most); }));
  for (int64_t row = 0; row < rows.indices.count; ++row) {
    if (row % at_a_time == 0) wave.run();
    int32_t* of_row = slots.get() + row % at_a_time * rows.topk;
    wave.add(row, row * q.stride, cpu::keys_of_slots(rows.entries(row), rows.lengths[row], of_row));
  }
  wave.run();
}

std::tuple<Tensor, Tensor> mla_sparse(const Tensor& q, const Tensor& cache, const Tensor& indices,
                                      double sm_scale, int64_t v_dim, std::optional<Tensor> attn_sink,
                                      std::optional<Tensor> topk_length) {
  const Args a = {q, cache, indices, sm_scale, v_dim, attn_sink, topk_length};
  check(a);
  Tensor out = empty_cpu(a.shape({a.H(), v_dim}), q.scalar_type());
  Tensor lse = empty_cpu(a.shape({a.H()}), ScalarType::Float);
  launch(a, out, lse);
  return {out, lse};
}

void mla_sparse_out(const Tensor& q, const Tensor& cache, const Tensor& indices, double sm_scale,
                    int64_t v_dim, std::optional<Tensor> attn_sink, std::optional<Tensor> topk_length,
                    Tensor out, Tensor lse) {
  const Args a = {q, cache, indices, sm_scale, v_dim, attn_sink, topk_length};
  check(a);
  check_out("mla_sparse_out", "out", out, q.scalar_type(), a.shape({a.H(), v_dim}));
  check_out("mla_sparse_out", "lse", lse, ScalarType::Float, a.shape({a.H()}));
  launch(a, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_sparse", TORCH_BOX(&mla_sparse));
  m.impl("mla_sparse_out", TORCH_BOX(&mla_sparse_out));
}

}  // namespace moela
