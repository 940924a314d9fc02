// What this machine can do, measured beside a kernel: the two roofs of the roofline.
#pragma once

#include <cstdint>

namespace moela::cpu {

struct Probe {
  // Reads [p, p + bytes) once, 64 bytes at a time; returns a checksum so that nothing is optimised away.
  uint64_t (*read)(const void* p, uint64_t bytes);
  // Runs `iterations` x `fma_flops` flops in registers with the widest multiply-add of the instruction set.
  float (*fma)(uint64_t iterations);
  uint64_t fma_flops;
};

}  // namespace moela::cpu
