// Time, for waits that end. PTX ISA "%globaltimer", "nanosleep".
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "%globaltimer". Nanoseconds; it advances in steps of up to a microsecond.
MOELA_DEVICE uint64_t globaltimer() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds)::"memory");
  return nanoseconds;
}

// PTX ISA "nanosleep". For up to twice as long.
MOELA_DEVICE void nanosleep(uint32_t nanoseconds) {
  asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds) : "memory");
}

}  // namespace moela::cuda::sm90
