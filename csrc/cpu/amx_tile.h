// The tiles of AMX: 16 rows x 16 columns x 32 products of bfloat16 an instruction. Included by
// isa_amx_bf16.cpp only.
//
// Numerics of a product: for each 32 products, ascending, the even and the odd ones are summed by themselves,
// and these two sums are added to it (tdpbf16ps). Subnormal numbers are zeros, of operands and of sums.
#pragma once

#include "cpu/simd.h"

namespace {

constexpr int kTile = 16;  // rows, columns, and words of two bfloat16
constexpr int kTileFloats = kTile * kTile;
constexpr int kTileRegisters = 8;  // four of products, two of each operand

class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < kTileRegisters; ++i) config.row_bytes[i] = 64, config.rows[i] = kTile;
    // gcc 12 takes this for a read of its first bytes only, and may leave out the rest.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Two tiles side by side of each step, in words.
struct TileOperand {
  const float* words;
  int64_t row;     // from row to row of a tile
  int64_t second;  // from the first tile to the second
  int64_t step;
};
// A tile after the other.
inline TileOperand whole_tiles(const float* words, int64_t second) {
  return {.words = words, .row = kTile, .second = second, .step = kTileFloats};
}

struct NoWork {
  MOELA_INLINE void step() const {}
};

// products[16 kRows][16 kCols] = the sum over the steps of a @ b; each step does one of `beside`.
template <int kRows, int kCols, class Beside = NoWork>
MOELA_INLINE void multiply_tiles(TileOperand a, TileOperand b, int64_t steps, float* products, int64_t ldp,
                                 Beside&& beside = {}) {
  asm volatile("" ::: "memory");  // gcc 12 does not know that loading a tile reads memory
  _tile_zero(0);
  if constexpr (kCols == 2) _tile_zero(1);
  if constexpr (kRows == 2) _tile_zero(2);
  if constexpr (kRows == 2 && kCols == 2) _tile_zero(3);
  for (int64_t k = 0; k < steps; ++k, a.words += a.step, b.words += b.step) {
    _tile_loadd(4, a.words, a.row * 4);
    _tile_loadd(6, b.words, b.row * 4);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kCols == 2) {
      _tile_loadd(7, b.words + b.second, b.row * 4);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, a.words + a.second, a.row * 4);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRows == 2 && kCols == 2) _tile_dpbf16ps(3, 5, 7);
    beside.step();
  }
  _tile_stored(0, products, ldp * 4);
  if constexpr (kCols == 2) _tile_stored(1, products + kTile, ldp * 4);
  if constexpr (kRows == 2) _tile_stored(2, products + kTile * ldp, ldp * 4);
  if constexpr (kRows == 2 && kCols == 2) _tile_stored(3, products + kTile * ldp + kTile, ldp * 4);
}

// Tiles that are multiplied at once, of some: visit(first, Constant<2 or 1>).
template <class Visit>
MOELA_INLINE void for_pairs_of_tiles(int64_t tiles, const Visit& visit) {
  for (int64_t i = 0; i + 1 < tiles; i += 2) visit(i, Constant<2>{});
  if (tiles % 2 != 0) visit(tiles - 1, Constant<1>{});
}

}  // namespace
