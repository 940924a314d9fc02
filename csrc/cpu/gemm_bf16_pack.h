// Rows of a for products of pairs of bfloat16. Part of gemm_kernel.h; gemm_bf16.h has the numerics.
#pragma once

#include "cpu/gemm_kernel.h"

namespace {

constexpr int kBf16Step = 8;  // columns of K in a vector
constexpr int kBf16Rows = 2;  // of a in a register tile; three are no faster (docs/FACTS.md)
constexpr int kBlocksPerSlab = kSlab / kBlock;

// The bfloat16 of e4m3 codes times 2^-8: sums of a block then overflow no sooner than scaled weights would.
struct E4m3Tables {
  constexpr E4m3Tables() {
    for (int code = 0; code < 128; ++code) {
      const int exponent = code >> 3, fraction = code & 7;
      uint16_t bits = 0;
      if (exponent != 0) {
        bits = static_cast<uint16_t>((exponent - 7 - 8 + 127) << 7 | fraction << 4);
      } else if (fraction != 0) {
        const int top = fraction >= 4 ? 2 : fraction >= 2 ? 1 : 0;  // fraction * 2^-9 has its first bit there
        bits = static_cast<uint16_t>((top - 9 - 8 + 127) << 7 | ((fraction << (7 - top)) & 0x7F));
      }
      if (code == 127) bits = 0x7FC0;
      high[code] = static_cast<uint8_t>(bits >> 8);
      low[code] = static_cast<uint8_t>(bits & 0xFF);
    }
  }
  alignas(64) uint8_t high[128] = {};
  alignas(64) uint8_t low[128] = {};
};
constexpr E4m3Tables kE4m3Tables;
constexpr float kUnscale = 0x1p8f;

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
inline uint32_t finite_magnitude(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  return magnitude < 0x7F800000 ? magnitude : 0;
}

// One row of a slab that is being packed: its columns as bfloat16, in one or two terms, and what each block
// of products is to be multiplied with.
struct Bf16Row {
  uint16_t terms[2][kSlab];
  float factors[kBlocksPerSlab];

  void set_codes(const uint8_t* codes, int64_t k, int64_t count) {
    for (int64_t i = 0; i < count; ++i) terms[0][k + i] = bf16_of_code(codes[i]);
  }
  void set_bf16(const uint16_t* values, int64_t count) {
    uint32_t amax = 0;
    for (int64_t k = 0; k < count; ++k) {
      const uint32_t magnitude = finite_magnitude(static_cast<uint32_t>(values[k]) << 16);
      amax = magnitude > amax ? magnitude : amax;
      terms[0][k] = values[k];
    }
    const float factor = range_factor(amax);
    if (factor != 1.f)
      for (int64_t k = 0; k < count; ++k) terms[0][k] = to_bfloat16(from_bfloat16(values[k]) * factor);
    for (float& f : factors) f = 1.f / factor;
  }
  // value = terms[0] + terms[1] to 16 bits; what is no number stays in the first.
  void set_two_terms(const float* values, int64_t count) {
    uint32_t amax = 0;
    for (int64_t k = 0; k < count; ++k) {
      const uint32_t magnitude = finite_magnitude(bits_of(values[k]));
      amax = magnitude > amax ? magnitude : amax;
    }
    const float factor = range_factor(amax);
    for (int64_t k = 0; k < count; ++k) {
      const float value = values[k] * factor;
      terms[0][k] = to_bfloat16(value);
      const bool is_number = (terms[0][k] & 0x7FFF) < 0x7F80;
      terms[1][k] = is_number ? to_bfloat16(value - from_bfloat16(terms[0][k])) : 0;
    }
    for (float& f : factors) f = 1.f / factor;
  }
};

constexpr int num_terms(const GemmProblem& p) { return p.a_cast == ActivationCast::kTwoBFloat16 ? 2 : 1; }

// Columns [k0, k0 + cols) of row m, zero beyond K up to a whole block.
inline void load_row_bf16(const GemmProblem& p, int64_t k0, int64_t cols, int64_t m, Bf16Row& row) {
  const int64_t from = p.a_rows ? p.a_rows[m] : m, first = from * p.lda + k0;
  if (p.a_cast == ActivationCast::kTwoBFloat16) {
    row.set_two_terms(static_cast<const float*>(p.a) + first, cols);
  } else if (p.a_cast != ActivationCast::kNone) {
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
  for (uint16_t* term : {row.terms[0], row.terms[1]}) std::memset(term + cols, 0, padding * sizeof(uint16_t));
}

// A packed slab. Each term of a row is a row of its own: [row tile][k / 8][row of the tile][8] of bfloat16,
// then factors [row][kBlocksPerSlab].
struct PackedSlab {
  PackedSlab(const GemmChunk& chunk, int64_t slab)
      : k0(slab * kSlab),
        cols(min_of(kSlab, chunk.problem->K - k0)),
        padded(ceil_div(cols, kBlock) * kBlock),
        num_rows(chunk.num_rows * num_terms(*chunk.problem)),
        a(reinterpret_cast<uint16_t*>(chunk.a +
                                      slab * (kSlab + moela::cpu::kGemmSlabNotes) * chunk.num_rows)),
        factors(reinterpret_cast<float*>(a + padded * num_rows)) {}
  int64_t k0;
  int64_t cols;    // that exist
  int64_t padded;  // to whole blocks
  int64_t num_rows;
  uint16_t* a;
  float* factors;
};
static_assert(2 * kBlocksPerSlab <= moela::cpu::kGemmSlabNotes, "the factors of two terms would not fit");

void pack_for_bf16(const GemmChunk& chunk, int64_t index) {
  const PackedSlab slab(chunk, index);
  const RowTiles tiles(slab.num_rows, kBf16Rows);
  const int terms = num_terms(*chunk.problem);
  Bf16Row row;
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t rows = tiles.rows(t);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t m = tiles.begin(t) + r;
      if (m % terms == 0) load_row_bf16(*chunk.problem, slab.k0, slab.cols, chunk.m0 + m / terms, row);
      std::memcpy(slab.factors + m * kBlocksPerSlab, row.factors, sizeof row.factors);
      const uint16_t* from = row.terms[m % terms];
      uint16_t* to = slab.a + tiles.begin(t) * slab.padded + r * kBf16Step;
      for (int64_t k = 0; k < slab.padded; k += kBf16Step, to += rows * kBf16Step)
        std::memcpy(to, from + k, kBf16Step * sizeof(uint16_t));
    }
  }
}

}  // namespace
