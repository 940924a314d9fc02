// `slot_mapping`, in the words of python/moela/ops/_check.py, and its plain form.
#pragma once

#include <string>

#include "common/tensor.h"
#include "cpu/slots.h"

namespace moela {

inline cpu::Slots slots_of(const Tensor& slots) {
  return {.data = slots.const_data_ptr(), .are_64 = slots.scalar_type() == ScalarType::Long};
}

// Beside `owner`, which has T rows.
inline void check_slots(const char* op, const Tensor& slots, int64_t T, int64_t num_slots,
                        const char* owner) {
  const char* arg = "slot_mapping";
  check_dtype(op, arg, slots.scalar_type(), {ScalarType::Int, ScalarType::Long});
  check_shape(op, arg, slots, {T});
  check_last_dim_contiguous(op, arg, slots);
  check_cpu(op, arg, slots, owner);
  for (int64_t t = 0; t < T; ++t) {
    const int64_t slot = slots_of(slots).of(t);
    if (slot < -1 || slot >= num_slots)
      fail(op, arg, "slots within [-1, " + std::to_string(num_slots - 1) + "]",
           std::to_string(slot) + " at token " + std::to_string(t));
  }
}

}  // namespace moela
