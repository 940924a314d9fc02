// Rows of a as bfloat16. Part of gemm_kernel.h.
#pragma once

#include "cpu/e4m3_bf16.h"
#include "cpu/gemm_kernel.h"

namespace {

constexpr int kBlocksPerSlab = kSlab / kBlock;
static_assert(kBlocksPerSlab <= moela::cpu::kGemmSlabNotes, "the factors would not fit");

inline uint16_t bf16_of_code(uint8_t code) {
  return static_cast<uint16_t>((kE4m3Tables.high[code & 0x7F] | (code & 0x80)) << 8 |
                               kE4m3Tables.low[code & 0x7F]);
}

// vdpbf16ps takes subnormal numbers for zero, and a block's sum may overflow although scale factors would
// bring it back. So where a row has only tiny elements, or huge ones, its slab is multiplied by this power of
// two. `amax`: the bits of the largest finite magnitude.
inline float range_factor(uint32_t amax) {
  return amax == 0 ? 1.f : float_of(amax) < 0x1p-60f ? 0x1p60f : float_of(amax) > 0x1p60f ? 0x1p-60f : 1.f;
}

// One row of a slab that is being packed: its columns as bfloat16, and what each block of products is to be
// multiplied with.
struct Bf16Row {
  uint16_t elements[kSlab];
  float factors[kBlocksPerSlab];

  void set_codes(const uint8_t* codes, int64_t k, int64_t count) {
    for (int64_t i = 0; i < count; ++i) elements[k + i] = bf16_of_code(codes[i]);
  }
  void set_bf16(const uint16_t* values, int64_t count) {
    int16_t amax = 0;  // of 16 bits with a sign: what gcc finds a maximum of 32 values at a time for
    for (int64_t k = 0; k < count; ++k) {
      const int16_t magnitude = values[k] & 0x7FFF, finite = magnitude < 0x7F80 ? magnitude : int16_t{0};
      amax = finite > amax ? finite : amax;
    }
    const float factor = range_factor(bits_of(from_bfloat16(static_cast<uint16_t>(amax))));
    std::memcpy(elements, values, count * sizeof(uint16_t));
    if (factor != 1.f)
      for (int64_t k = 0; k < count; ++k) elements[k] = to_bfloat16(from_bfloat16(values[k]) * factor);
    for (float& f : factors) f = 1.f / factor;
  }
};

// Columns [k0, k0 + cols) of row m, zero beyond K up to a whole block.
inline void load_row_bf16(const GemmProblem& p, int64_t k0, int64_t cols, int64_t m, Bf16Row& row) {
  const int64_t from = p.a_rows ? p.a_rows[m] : m, first = from * p.lda + k0;
  if (p.a_cast != ActivationCast::kNone) {
    float values[kBlock];
    uint8_t codes[kBlock];
    for (int64_t k = 0; k < cols; k += kBlock) {
      const int64_t count = min_of(kBlock, cols - k);
      load_floats(p.a, p.a_dtype, first + k, count, values);
      const float sf = scale_factor(amax_bits(values, count, 0), p.a_cast == ActivationCast::kFp8Ue8m0);
      quantize(values, count, sf, codes);
      row.set_codes(codes, k, count);
      row.factors[k / kBlock] = sf * kUnscale;
    }
  } else if (p.a_dtype == Dtype::kE4m3) {
    row.set_codes(static_cast<const uint8_t*>(p.a) + first, 0, cols);
    const float* sf = p.sf_a + from * p.sf_a_stride_m + k0 / kBlock * p.sf_a_stride_k;
    for (int64_t k = 0; k < cols; k += kBlock, sf += p.sf_a_stride_k)
      row.factors[k / kBlock] = *sf * kUnscale;
  } else {
    row.set_bf16(static_cast<const uint16_t*>(p.a) + first, cols);
  }
  if (p.b_dtype == Dtype::kE4m3)
    for (float& f : row.factors) f *= kUnscale;
  const int64_t padding = ceil_div(cols, kBlock) * kBlock - cols;
  std::memset(row.elements + cols, 0, padding * sizeof(uint16_t));
}

}  // namespace
