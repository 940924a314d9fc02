// Torch side of the CPU moe_permute: check, sort by counting, copy.
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "moe_permute";

void check(const Tensor& x, const Tensor& topk_ids, int64_t num_experts) {
  using enum ScalarType;
  check_dim(kOp, "x", x, 2);
  check_dtype(kOp, "x", x.scalar_type(), {BFloat16, Half, Float, Float8_e4m3fn, Float8_e8m0fnu, Int, Byte});
  check_last_dim_contiguous(kOp, "x", x);
  check_dim(kOp, "topk_ids", topk_ids, 2);
  check_dtype(kOp, "topk_ids", topk_ids.scalar_type(), {Int, Long});
  if (topk_ids.size(0) != x.size(0))
    fail(kOp, "topk_ids", "T=" + std::to_string(x.size(0)), "T=" + std::to_string(topk_ids.size(0)));
  check_last_dim_contiguous(kOp, "topk_ids", topk_ids);
  const int64_t num_pairs = topk_ids.size(0) * topk_ids.size(1);
  if (num_pairs >= int64_t{1} << 31) fail(kOp, "topk_ids", "less than 2^31 elements", num_pairs);
  check_cpu(kOp, "topk_ids", topk_ids, "x");
  if (num_experts <= 0) fail(kOp, "num_experts", "a positive number", num_experts);
}

// Counts, sums up, and deals out the rows in the order of the pairs, which is what makes the sort stable.
template <class Id>
void sort_by_expert(const Tensor& topk_ids, int64_t num_experts, int32_t* expert_offsets, int32_t* inverse) {
  const auto* ids = static_cast<const Id*>(topk_ids.const_data_ptr());
  const int64_t T = topk_ids.size(0), topk = topk_ids.size(1), ld = topk_ids.stride(0);
  const auto is_here = [num_experts](Id id) { return id >= 0 && id < num_experts; };
  const Scratch<int32_t> next(num_experts);
  for (int64_t e = 0; e < num_experts; ++e) next.get()[e] = 0;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t slot = 0; slot < topk; ++slot)
      if (const Id id = ids[t * ld + slot]; is_here(id)) ++next.get()[id];
  int32_t row = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    expert_offsets[e] = row;
    row += next.get()[e];
    next.get()[e] = expert_offsets[e];
  }
  expert_offsets[num_experts] = row;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t slot = 0; slot < topk; ++slot) {
      const Id id = ids[t * ld + slot];
      inverse[t * topk + slot] = is_here(id) ? next.get()[id]++ : -1;
    }
}

void launch(const Tensor& x, const Tensor& topk_ids, int64_t num_experts, Tensor& x_sorted,
            Tensor& expert_offsets, Tensor& inverse) {
  auto* offsets = static_cast<int32_t*>(expert_offsets.mutable_data_ptr());
  auto* rows = static_cast<int32_t*>(inverse.mutable_data_ptr());
  if (topk_ids.scalar_type() == ScalarType::Int)
    sort_by_expert<int32_t>(topk_ids, num_experts, offsets, rows);
  else
    sort_by_expert<int64_t>(topk_ids, num_experts, offsets, rows);
  const auto element = static_cast<int64_t>(x.element_size());
  const cpu::MoePermuteParams p = {
      .x = x.const_data_ptr(),
      .row_bytes = x.size(1) * element,
      .ldx_bytes = x.stride(0) * element,
      .inverse = rows,
      .x_sorted = x_sorted.mutable_data_ptr(),
      .topk = topk_ids.size(1),
      .num_rows = offsets[num_experts],
  };
  if (p.row_bytes == 0) return;
  parallel(x.size(0), 0.1 * static_cast<double>(p.row_bytes * p.topk),
           [&](int64_t begin, int64_t end) { cpu::kernels().moe_permute(p, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> moe_permute(const Tensor& x, const Tensor& topk_ids, int64_t num_experts) {
  check(x, topk_ids, num_experts);
  Tensor x_sorted = empty_cpu({topk_ids.size(0) * topk_ids.size(1), x.size(1)}, x);
  Tensor expert_offsets = empty_cpu({num_experts + 1}, ScalarType::Int);
  Tensor inverse = empty_cpu(sizes_of(topk_ids), ScalarType::Int);
  launch(x, topk_ids, num_experts, x_sorted, expert_offsets, inverse);
  return {x_sorted, expert_offsets, inverse};
}

void moe_permute_out(const Tensor& x, const Tensor& topk_ids, int64_t num_experts, Tensor x_sorted,
                     Tensor expert_offsets, Tensor inverse) {
  check(x, topk_ids, num_experts);
  const char* op = "moe_permute_out";
  check_out(op, "x_sorted", x_sorted, x.scalar_type(), {topk_ids.size(0) * topk_ids.size(1), x.size(1)});
  check_out(op, "expert_offsets", expert_offsets, ScalarType::Int, {num_experts + 1});
  check_out(op, "inverse", inverse, ScalarType::Int, sizes_of(topk_ids));
  launch(x, topk_ids, num_experts, x_sorted, expert_offsets, inverse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("moe_permute", TORCH_BOX(&moe_permute));
  m.impl("moe_permute_out", TORCH_BOX(&moe_permute_out));
}

}  // namespace moela
