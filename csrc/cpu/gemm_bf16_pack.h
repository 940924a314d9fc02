// Rows of a for products of pairs of bfloat16. Part of gemm_kernel.h; gemm_bf16.h has the numerics.
#pragma once

#include "cpu/e4m3_bf16.h"
#include "cpu/gemm_kernel.h"

namespace {

constexpr int kBf16FirstRows = 8;  // of a that are multiplied as the weights are decoded
constexpr int kBf16Slab = 256;     // columns of K whose weights, 16 KB for a task, stay in L1
constexpr int kBf16PanelRows = 4;  // of a in a register tile, beyond those
constexpr int kBlocksPerSlab = kSlab / kBlock;

// Row tiles of a chunk: the first rows, then tiles of nearly equal size.
struct Bf16RowTiles {
  explicit Bf16RowTiles(int64_t num_rows)
      : first(min_of(num_rows, kBf16FirstRows)),
        count(1 + ceil_div(num_rows - first, kBf16PanelRows)),
        num_rows(num_rows) {}
  int64_t begin(int64_t t) const { return t == 0 ? 0 : first + (num_rows - first) * (t - 1) / (count - 1); }
  int64_t rows(int64_t t) const { return t == 0 ? first : begin(t + 1) - begin(t); }
  int64_t first;
  int64_t count;
  int64_t num_rows;
};

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

// A packed slab: per kBf16Slab columns [row tile][pair of columns][row of the tile], so that a walk over the
// tiles is one stream; then factors [row][kBlocksPerSlab].
struct PackedSlab {
  PackedSlab(const GemmChunk& chunk, int64_t slab)
      : k0(slab * kSlab),
        cols(min_of(kSlab, chunk.problem->K - k0)),
        padded(ceil_div(cols, kBlock) * kBlock),
        a(reinterpret_cast<uint32_t*>(chunk.a +
                                      slab * (kSlab + moela::cpu::kGemmSlabNotes) * chunk.num_rows)),
        factors(reinterpret_cast<float*>(a + padded / 2 * chunk.num_rows)) {}
  int64_t k0;
  int64_t cols;    // that exist
  int64_t padded;  // to whole blocks
  uint32_t* a;
  float* factors;
};

static_assert(kBlocksPerSlab <= moela::cpu::kGemmSlabNotes, "the factors would not fit");

void pack_for_bf16(const GemmChunk& chunk, int64_t index) {
  const PackedSlab slab(chunk, index);
  const Bf16RowTiles tiles(chunk.num_rows);
  Bf16Row row;
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t rows = tiles.rows(t), first = tiles.begin(t);
    for (int64_t r = 0; r < rows; ++r) {
      load_row_bf16(*chunk.problem, slab.k0, slab.cols, chunk.m0 + first + r, row);
      std::memcpy(slab.factors + (first + r) * kBlocksPerSlab, row.factors, sizeof row.factors);
      for (int64_t k0 = 0; k0 < slab.padded; k0 += kBf16Slab) {
        const int64_t cols = min_of(kBf16Slab, slab.padded - k0);
        uint32_t* to = slab.a + (k0 * chunk.num_rows + first * cols) / 2 + r;
        for (int64_t k = 0; k < cols; k += 2, to += rows) std::memcpy(to, row.elements + k0 + k, sizeof *to);
      }
    }
  }
}

}  // namespace
