// How a kernel is launched: one struct that host, kernel and emulator share.
#pragma once

#include <cstdint>

namespace moela::cuda {

struct LaunchShape {
  int grid;                        // blocks, a multiple of cluster
  int block;                       // threads, a multiple of 32
  int cluster = 1;                 // blocks per cluster, at most 8 (the portable limit)
  uint32_t smem_bytes = 0;         // dynamic shared memory
  bool overlaps_previous = false;  // programmatic dependent launch: the kernel must call griddep_wait()
};

constexpr uint32_t kMaxSmemBytes = 227 * 1024;  // per block on sm_90

}  // namespace moela::cuda
