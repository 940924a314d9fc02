// Packs rows of a for the tiles of AMX. Part of gemm_kernel.h; gemm_amx.h has the numerics.
#pragma once

#include "cpu/amx_tile.h"
#include "cpu/gemm_bf16_rows.h"

namespace {

// The rows of a chunk are the columns of tiles, all of one width: a power of two, so that no line of a tile
// lies in two cache lines.
struct TileRows {
  explicit TileRows(int64_t num_rows)
      : lanes(num_rows > 8   ? kTile
              : num_rows > 4 ? 8
              : num_rows > 2 ? 4
                             : num_rows),
        count(ceil_div(num_rows, lanes)) {}
  int64_t lanes;
  int64_t count;  // of tiles
};

// A packed slab: [row tile][tile of columns][pair of columns][lane], then factors [row tile][block][lane].
// Lanes are less than twice the rows, so that 16 bits an element are less than the room of a float for each.
struct PackedSlab {
  PackedSlab(const GemmChunk& chunk, int64_t index)
      : rows(chunk.num_rows),
        k0(index * kSlab),
        cols(min_of(kSlab, chunk.problem->K - k0)),
        padded(ceil_div(cols, kBlock) * kBlock),
        tile_words(padded / 2 * rows.lanes) {
    float* room = chunk.a + index * (kSlab + moela::cpu::kGemmSlabNotes) * chunk.num_rows;
    a = reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(room) + kLine - 1) / kLine * kLine);
    factors = reinterpret_cast<float*>(a + rows.count * tile_words);
  }
  TileRows rows;
  int64_t k0;
  int64_t cols;        // that exist
  int64_t padded;      // to whole blocks
  int64_t tile_words;  // from row tile to row tile
  uint32_t* a;
  float* factors;
};

// Columns of 64 as E4m3Decoder gives them.
inline void reorder_like_codes(int64_t cols, uint16_t* elements) {
  for (uint16_t* p = elements; p < elements + cols; p += 2 * kTileColumns) {
    const I x = _mm512_loadu_si512(p), y = _mm512_loadu_si512(p + kTileColumns);
    _mm512_storeu_si512(p, _mm512_shuffle_i64x2(x, y, 0x88));
    _mm512_storeu_si512(p + kTileColumns, _mm512_shuffle_i64x2(x, y, 0xDD));
  }
}

void pack_for_bf16(const GemmChunk& chunk, int64_t index) {
  static thread_local Bf16Row rows[kTile];
  const GemmProblem& p = *chunk.problem;
  const PackedSlab slab(chunk, index);
  const int64_t lanes = slab.rows.lanes;
  const auto stored = static_cast<__mmask16>((1u << lanes) - 1);
  for (int64_t t = 0; t < slab.rows.count; ++t) {
    const int64_t first = t * lanes;
    for (int64_t r = 0; r < lanes; ++r) {
      if (first + r < chunk.num_rows) {
        load_row_bf16(p, slab.k0, slab.cols, chunk.m0 + first + r, rows[r]);
        if (p.b_dtype == Dtype::kE4m3) reorder_like_codes(slab.padded, rows[r].elements);
      } else {
        std::memset(&rows[r], 0, sizeof rows[r]);
      }
      for (int64_t b = 0; b < kBlocksPerSlab; ++b)
        slab.factors[(t * kBlocksPerSlab + b) * lanes + r] = rows[r].factors[b];
    }
    uint32_t* to = slab.a + t * slab.tile_words;
    for (int64_t k = 0; k < slab.padded; k += kTileColumns) {
      I pairs[kTile];
      load_quads(reinterpret_cast<const uint8_t*>(rows[0].elements + k), sizeof rows[0], pairs);
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i, to += lanes) _mm512_mask_storeu_epi32(to, stored, pairs[i]);
    }
  }
}

}  // namespace
