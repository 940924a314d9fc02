// Codecs: how the elements of b become float32 weights. Part of gemm_kernel.h, which has the numerics.
//
// Kernels read b in words of 32 bits, kPerWord elements each, and sixteen words, a cache line, at a time:
// word c of a line belongs to chain c. Decoding element i of a vector of words is a few operations and exact.
#pragma once

#include "cpu/convert.h"
#include "cpu/simd.h"

namespace {

// Value * 2^-120; the kernels multiply by 2^120 times the scale factor.
struct E4m3Codec {
  using Element = uint8_t;
  static constexpr int kPerWord = 4;
  static constexpr bool kHasSf = true;
  static MOELA_INLINE F decode(I words, int i) { return decode_tiny(words, i); }
};

struct BFloat16Codec {
  using Element = uint16_t;
  static constexpr int kPerWord = 2;
  static constexpr bool kHasSf = false;
  static MOELA_INLINE F decode(I words, int i) {
    return mask_bits(i == 0 ? shift_left32(words, 16) : words, 0xFFFF0000);
  }
  static MOELA_INLINE F widen(const uint16_t* p) { return decode(load_halves(p), 0); }
};

struct Float16Codec {
  using Element = uint16_t;
  static constexpr int kPerWord = 2;
  static constexpr bool kHasSf = false;
  static MOELA_INLINE F decode(I words, int i) {
    return from_low_halves(i == 0 ? words : shift_right32(words, 16));
  }
  static MOELA_INLINE F widen(const uint16_t* p) { return from_low_halves(load_halves(p)); }
};

struct Float32Codec {
  using Element = float;
  static constexpr int kPerWord = 1;
  static constexpr bool kHasSf = false;
  static MOELA_INLINE F decode(I words, int) { return mask_bits(words, 0xFFFFFFFF); }
  static MOELA_INLINE F widen(const float* p) { return load(p); }
};

// Calls f with the codec of `dtype`.
template <class Fn>
MOELA_INLINE void with_codec(Dtype dtype, const Fn& f) {
  switch (dtype) {
    case Dtype::kE4m3: return f(E4m3Codec{});
    case Dtype::kBFloat16: return f(BFloat16Codec{});
    case Dtype::kFloat16: return f(Float16Codec{});
    case Dtype::kFloat32: return f(Float32Codec{});
    case Dtype::kE8m0: __builtin_unreachable();
  }
}

}  // namespace
