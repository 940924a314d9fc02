// Torch side of the CPU ep_plan: check, launch.
#include "cpu/ep_plan.h"

#include "common/tensor.h"

namespace moela {
namespace {

constexpr const char* kOp = "ep_plan";

void check(const Tensor& topk_ids, int64_t num_experts, int64_t num_ranks) {
  check_dim(kOp, "topk_ids", topk_ids, 2);
  check_dtype(kOp, "topk_ids", topk_ids.scalar_type(), {ScalarType::Int, ScalarType::Long});
  check_last_dim_contiguous(kOp, "topk_ids", topk_ids);
  const int64_t num_pairs = topk_ids.size(0) * topk_ids.size(1);
  if (num_pairs >= int64_t{1} << 31) fail(kOp, "topk_ids", "less than 2^31 elements", num_pairs);
  if (num_experts <= 0) fail(kOp, "num_experts", "a positive number", num_experts);
  if (num_ranks <= 0) fail(kOp, "num_ranks", "a positive number", num_ranks);
}

int64_t num_rows_of(const Tensor& topk_ids, int64_t num_ranks) {
  return topk_ids.size(0) * std::min(topk_ids.size(1), num_ranks);
}

template <class Id>
void plan(const Tensor& topk_ids, int64_t num_experts, int64_t num_ranks, Tensor& send_rows, Tensor& counts,
          Tensor& slots) {
  const Scratch<int32_t> next(num_ranks), last(num_ranks);
  cpu::ep_plan<Id>({.topk_ids = static_cast<const Id*>(topk_ids.const_data_ptr()),
                    .T = topk_ids.size(0),
                    .topk = topk_ids.size(1),
                    .ld_ids = topk_ids.stride(0),
                    .num_experts = num_experts,
                    .num_ranks = num_ranks,
                    .send_rows = static_cast<int32_t*>(send_rows.mutable_data_ptr()),
                    .num_rows = num_rows_of(topk_ids, num_ranks),
                    .counts = static_cast<int32_t*>(counts.mutable_data_ptr()),
                    .slots = static_cast<int32_t*>(slots.mutable_data_ptr()),
                    .next = next.get(),
                    .last = last.get()});
}

void launch(const Tensor& topk_ids, int64_t num_experts, int64_t num_ranks, Tensor& send_rows, Tensor& counts,
            Tensor& slots) {
  const bool is_int = topk_ids.scalar_type() == ScalarType::Int;
  (is_int ? plan<int32_t> : plan<int64_t>)(topk_ids, num_experts, num_ranks, send_rows, counts, slots);
}

std::tuple<Tensor, Tensor, Tensor> ep_plan(const Tensor& topk_ids, int64_t num_experts, int64_t num_ranks) {
  check(topk_ids, num_experts, num_ranks);
  Tensor send_rows = empty_cpu({num_rows_of(topk_ids, num_ranks)}, ScalarType::Int);
  Tensor counts = empty_cpu({num_ranks}, ScalarType::Int);
  Tensor slots = empty_cpu(sizes_of(topk_ids), ScalarType::Int);
  launch(topk_ids, num_experts, num_ranks, send_rows, counts, slots);
  return {send_rows, counts, slots};
}

void ep_plan_out(const Tensor& topk_ids, int64_t num_experts, int64_t num_ranks, Tensor send_rows,
                 Tensor counts, Tensor slots) {
  check(topk_ids, num_experts, num_ranks);
  const char* op = "ep_plan_out";
  check_out(op, "send_rows", send_rows, ScalarType::Int, {num_rows_of(topk_ids, num_ranks)});
  check_out(op, "counts", counts, ScalarType::Int, {num_ranks});
  check_out(op, "slots", slots, ScalarType::Int, sizes_of(topk_ids));
  launch(topk_ids, num_experts, num_ranks, send_rows, counts, slots);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("ep_plan", TORCH_BOX(&ep_plan));
  m.impl("ep_plan_out", TORCH_BOX(&ep_plan_out));
}

}  // namespace moela
