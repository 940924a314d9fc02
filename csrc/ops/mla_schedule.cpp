// Torch side of the CPU mla_schedule: check, launch.
#include "cpu/mla_schedule.h"

#include "common/expert_rows.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_schedule";

void check_within(const char* arg, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    fail(kOp, arg, "a number within [" + std::to_string(least) + ", " + std::to_string(most) + "]", value);
}

void check(const Tensor& seqlens, int64_t rows, int64_t num_parts) {
  check_dim(kOp, "seqlens", seqlens, 1);
  check_dtype(kOp, "seqlens", seqlens.scalar_type(), {ScalarType::Int});
  check_last_dim_contiguous(kOp, "seqlens", seqlens);
  check_within("rows", rows, 0, plan::kMlaMaxRows);
  check_within("num_parts", num_parts, 1, plan::kMlaMaxParts);
  for (int64_t b = 0; b < seqlens.size(0); ++b)
    if (int32s(seqlens)[b] < 0)
      fail(kOp, "seqlens", "lengths of at least 0",
           std::to_string(int32s(seqlens)[b]) + " at request " + std::to_string(b));
}

std::vector<int64_t> shape_of(const Tensor& seqlens, int64_t num_parts) {
  return {plan::mla_schedule_rows(seqlens.size(0), num_parts), plan::kMlaScheduleColumns};
}

void launch(const Tensor& seqlens, int64_t rows, int64_t num_parts, bool batch_invariant, Tensor& schedule) {
  cpu::mla_schedule({.seqlens = int32s(seqlens),
                     .B = seqlens.size(0),
                     .rows = rows,
                     .num_parts = num_parts,
                     .batch_invariant = batch_invariant,
                     .schedule = static_cast<int32_t*>(schedule.mutable_data_ptr())});
}

Tensor mla_schedule(const Tensor& seqlens, int64_t rows, int64_t num_parts, bool batch_invariant) {
  check(seqlens, rows, num_parts);
  Tensor schedule = empty_cpu(shape_of(seqlens, num_parts), ScalarType::Int);
  launch(seqlens, rows, num_parts, batch_invariant, schedule);
  return schedule;
}

void mla_schedule_out(const Tensor& seqlens, int64_t rows, int64_t num_parts, bool batch_invariant,
                      Tensor schedule) {
  check(seqlens, rows, num_parts);
  check_out("mla_schedule_out", "schedule", schedule, ScalarType::Int, shape_of(seqlens, num_parts));
  launch(seqlens, rows, num_parts, batch_invariant, schedule);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_schedule", TORCH_BOX(&mla_schedule));
  m.impl("mla_schedule_out", TORCH_BOX(&mla_schedule_out));
}

}  // namespace moela
