// The vector operations that the CPU kernels are written in, once per instruction set.
//
// Included by isa_<name>.cpp only, which defines MOELA_SIMD_<NAME>. Everything is in an anonymous namespace: a
// function that two translation units share by name could be linked from the one built for the larger
// instruction set. For the same reason no std:: function is called here or in a kernel.
//
// kLanes is the number of float32 in an F. Lanes are always columns n of the result, never k: the sum over k is
// then the same sequence of fused multiply-adds on every instruction set, bit for bit (docs/adr/0005).
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
// float32 (subnormal codes become subnormal floats, so DAZ must be off). `q` holds four codes per lane; w[i] is code
// i. Nine operations for four vectors. NaN codes come out as +-480 * 2^-120: note_nan finds them.
constexpr float kTiny = 0x1p-120f;
MOELA_INLINE void decode_tiny(I q, F w[4]) {
  constexpr uint32_t kSignAndMagnitude = 0x87F00000;
  const I odd = shift_right_signed16(q, 4);                    // codes 1 and 3, in place within their 16 bits
  const I even = shift_right_signed16(shift_left16(q, 8), 4);  // codes 0 and 2
  w[0] = mask_bits(shift_left32(even, 16), kSignAndMagnitude);
  w[1] = mask_bits(shift_left32(odd, 16), kSignAndMagnitude);
  w[2] = mask_bits(even, kSignAndMagnitude);
  w[3] = mask_bits(odd, kSignAndMagnitude);
}

}  // namespace
