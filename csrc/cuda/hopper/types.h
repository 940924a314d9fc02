// What both halves of hopper.h share: qualifiers and small types.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef MOELA_EMULATE
#define MOELA_DEVICE inline
#define MOELA_KERNEL(threads) inline void
#define MOELA_PARAM const
#define MOELA_UNROLL
#else
#define MOELA_DEVICE __device__ __forceinline__
// One block per SM as the bound: otherwise ptxas does not know the register count at entry and ignores
// setmaxnreg.
#define MOELA_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define MOELA_PARAM const __grid_constant__  // TMA needs the address of a tensor map in parameter space
#define MOELA_UNROLL _Pragma("unroll")
#endif

namespace moela::cuda::sm90 {

using SmemAddr = uint32_t;  // a byte of shared memory; with mapa() one of another block of the cluster

struct alignas(16) Vec4 {  // one 16-byte access
  uint32_t x, y, z, w;
};

enum class Scope { kGpu, kSys };  // who sees a flag: this device, or all devices and the host

// The same bytes as another type.
template <class To, class From>
MOELA_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

MOELA_DEVICE uint32_t bits_of(float x) { return bits_as<uint32_t>(x); }
MOELA_DEVICE float float_of(uint32_t bits) { return bits_as<float>(bits); }

}  // namespace moela::cuda::sm90
