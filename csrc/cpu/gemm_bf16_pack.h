// Packs rows of a for products of pairs of bfloat16. Part of gemm_kernel.h; gemm_bf16.h has the numerics.
#pragma once

#include "cpu/gemm_bf16_rows.h"

namespace {

constexpr int kBf16FirstRows = 8;  // of a that are multiplied as the weights are decoded
constexpr int kBf16Slab = 256;     // columns of K whose weights, 16 KB for a task, stay in L1
constexpr int kBf16PanelRows = 4;  // of a in a register tile, beyond those

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
