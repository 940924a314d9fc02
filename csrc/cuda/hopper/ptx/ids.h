// Who runs. PTX ISA "Special registers".
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

extern __shared__ __align__(1024) uint8_t moela_dynamic_smem[];  // the repeat of the widest swizzle

// The start of the block's dynamic shared memory, a multiple of 1024.
MOELA_DEVICE SmemAddr smem_base() {
  return static_cast<SmemAddr>(__cvta_generic_to_shared(moela_dynamic_smem));
}

MOELA_DEVICE int tid() { return static_cast<int>(threadIdx.x); }
MOELA_DEVICE int lane() { return static_cast<int>(threadIdx.x & 31); }
// Through a shuffle, so that the compiler knows that it is the same for the whole warp.
MOELA_DEVICE int warp() { return static_cast<int>(__shfl_sync(~0u, threadIdx.x >> 5, 0)); }
MOELA_DEVICE int block() { return static_cast<int>(blockIdx.x); }
MOELA_DEVICE int num_blocks() { return static_cast<int>(gridDim.x); }

// PTX ISA "%cluster_ctarank".
MOELA_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// PTX ISA "%cluster_nctarank".
MOELA_DEVICE int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// PTX ISA "%clusterid".
MOELA_DEVICE int cluster() {
  int id;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(id));
  return id;
}

}  // namespace moela::cuda::sm90
