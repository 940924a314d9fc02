// The vector operations that the CPU kernels are written in, once per instruction set.
//
// Included by isa_<name>.cpp only, which defines MOELA_SIMD_<NAME>. Everything is in an anonymous namespace:
// a function that two translation units share by name could be linked from the one built for the larger
// instruction set. For the same reason no std:: function is called here or in a kernel.
//
// kLanes is the number of float32 in an F. Lanes are always columns n of the result, never k: the sum over k
// is then the same sequence of fused multiply-adds on every instruction set, bit for bit (docs/adr/0005).
#pragma once

#include <cstdint>
#include <cstring>

#define MOELA_INLINE inline __attribute__((always_inline))

#if defined(MOELA_SIMD_AVX512)
#include "cpu/simd/avx512.h"
#elif defined(MOELA_SIMD_AVX2)
#include "cpu/simd/avx2.h"
#elif defined(MOELA_SIMD_NEON)
#include "cpu/simd/neon.h"
#else
#include "cpu/simd/scalar.h"
#endif

namespace {

// e4m3 codes to value * 2^-120, exactly: a code's seven magnitude bits become exponent and fraction bits of a
// float32 (subnormal codes become subnormal floats, so DAZ must be off). q holds four codes per lane, w[i] is
// code i: nine operations for four vectors. NaN codes come out as +-480 * 2^-120; note_nan finds them.
constexpr uint32_t kSignAndMagnitude = 0x87F00000;
MOELA_INLINE F decode_tiny(I q, int i) {
  const I half = shift_right_signed16(i % 2 ? q : shift_left16(q, 8), 4);  // codes 1 and 3, or 0 and 2
  return mask_bits(i < 2 ? shift_left32(half, 16) : half, kSignAndMagnitude);
}

}  // namespace
