// Interface of the CUDA mla_schedule. Definition: python/moela/reference/mla_schedule.py.
#pragma once

#include <cstdint>

#include "cuda/hopper/launch.h"

namespace moela::cuda {

struct MlaScheduleParams {
  const int32_t* seqlens;  // [B]
  int B;
  int rows;  // query rows of a request
  int num_parts;
  bool batch_invariant;
  int32_t* schedule;  // [1 + (num_parts + 1) + (B + 1), 4], at a multiple of 16 bytes
};

LaunchStatus launch_mla_schedule(const MlaScheduleParams& params, Stream stream);

}  // namespace moela::cuda
