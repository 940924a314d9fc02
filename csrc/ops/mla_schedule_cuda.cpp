// Torch side of the CUDA mla_schedule: launch. Python has checked the arguments (ops/_spec.py).
#include <torch/csrc/stable/accelerator.h>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/mla_schedule/mla_schedule.h"

namespace moela {
namespace {

void mla_schedule_out(const Tensor& seqlens, int64_t rows, int64_t num_parts, bool batch_invariant,
                      Tensor schedule) {
  const torch::stable::accelerator::DeviceGuard guard(seqlens.get_device_index());
  const cudaError_t error =
      cuda::launch_mla_schedule({.seqlens = static_cast<const int32_t*>(seqlens.const_data_ptr()),
                                 .B = static_cast<int>(seqlens.size(0)),
                                 .rows = static_cast<int>(rows),
                                 .num_parts = static_cast<int>(num_parts),
                                 .batch_invariant = batch_invariant,
                                 .schedule = static_cast<int32_t*>(schedule.mutable_data_ptr())},
                                current_stream(seqlens.get_device_index()));
  check_launch("mla_schedule", error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) { m.impl("mla_schedule_out", TORCH_BOX(&mla_schedule_out)); }

}  // namespace moela
