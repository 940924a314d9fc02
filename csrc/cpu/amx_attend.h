// What attention makes of rows of bfloat16 so that the tiles of AMX can multiply them. Included by
// isa_amx_bf16.cpp only.
//
// Scores are [key][head or query]: keys are the rows of the first operand as they are, q is the second,
// [two columns][head]. Values are the second operand of the other product, [two keys][column], weights
// [head][key] the first: rounded to bfloat16, as on a GPU.
//
// Tiles take subnormal numbers for zeros. So they multiply ordinary numbers only, 0 and those from 2^-50 to
// 2^50: a product of two is at least 2^-100, of which a sum that is lost below 2^-126 is less than a rounding
// of float32. Weights are times 2^50: a product with a value falls below 2^-126 only if the weight was below
// that, and a sum that is lost was below 2^-126 of the largest value; both are within the bounds (LOST in
// python/moela/ops/_mla_bound.py).
#pragma once

#include "cpu/amx_tile.h"

namespace {

constexpr int kOrdinaryExponent = 50;
constexpr int kWeightExponent = kOrdinaryExponent;
constexpr float kWeightFactor = int64_t{1} << kWeightExponent;

// What lanes of bfloat16 have been seen: all ordinary or not.
class Ordinary {
 public:
  MOELA_INLINE void see(I x) {
    const I magnitude = _mm512_add_epi16(x, x);
    largest_ = _mm512_max_epu16(largest_, magnitude);
    least_ = _mm512_min_epu16(least_, _mm512_sub_epi16(magnitude, _mm512_set1_epi16(1)));  // 0 is the largest
  }
  // less_by: the exponent of the power of two that numbers are times where they are multiplied, not negative.
  bool all(int less_by = 0) const {
    const I most = _mm512_set1_epi16(static_cast<int16_t>((127 + kOrdinaryExponent) << 8));
    const I least = _mm512_set1_epi16(static_cast<int16_t>(((127 - kOrdinaryExponent - less_by) << 8) - 1));
    return (_mm512_cmpgt_epu16_mask(largest_, most) | _mm512_cmplt_epu16_mask(least_, least)) == 0;
  }

 private:
  I largest_ = _mm512_setzero_si512(), least_ = _mm512_set1_epi16(-1);
};

// Which of 32 columns there are, where there are `left`, or fewer than none.
inline __mmask32 tile_columns(int64_t left) {
  return left >= kTileColumns ? ~__mmask32{0} : left <= 0 ? 0 : (__mmask32{1} << left) - 1;
}
// Columns [k, k + 32) of a row, zeros where there are none.
MOELA_INLINE I load_columns(const void* row, int64_t k, __mmask32 live) {
  return _mm512_maskz_loadu_epi16(live, static_cast<const uint16_t*>(row) + k);
}

// Whether a row is ordinary; less_by: as Ordinary has it.
inline bool is_ordinary(const uint16_t* row, int64_t columns, int less_by = 0) {
  Ordinary ordinary;
  for (int64_t k = 0; k < columns; k += kTileColumns)
    ordinary.see(load_columns(row, k, tile_columns(columns - k)));
  return ordinary.all(less_by);
}

// Where pairs of values lie: [column / 16][pair][16], blocks an odd number of cache lines apart, so that a
// pair spreads over all sets of L1. Of 32 columns the first sixteen are 0-3, 8-11, 16-19 and 24-27, as
// unpacking leaves them: see in_order.
constexpr int64_t pair_block_floats(int64_t pairs) { return (pairs + 1) * kTile; }

MOELA_INLINE void store_pairs(I x, I y, int64_t k, int64_t block_floats, float* pair) {
  float* to = pair + k / kTile * block_floats;
  _mm512_storeu_si512(to, _mm512_unpacklo_epi16(x, y));
  _mm512_storeu_si512(to + block_floats, _mm512_unpackhi_epi16(x, y));
}

// Thirty-two sums of columns, times `factor`, where columns belong.
MOELA_INLINE void in_order(const float* sums, F factor, float* to) {
  const __m512d x = _mm512_castps_pd(mul(load(sums), factor));
  const __m512d y = _mm512_castps_pd(mul(load(sums + kTile), factor));
  const I first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
          second = _mm512_add_epi64(first, _mm512_set1_epi64(4));
  store(to, _mm512_castpd_ps(_mm512_permutex2var_pd(x, first, y)));
  store(to + kTile, _mm512_castpd_ps(_mm512_permutex2var_pd(x, second, y)));
}

// sums[row][ld] = sums * rescale[row] + products[row][32].
inline void add_products(const float* products, int64_t rows, const float* rescale, float* sums, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i, products += kTileColumns, sums += ld) {
    const F factor = set1(rescale[i]);
    store(sums, fma(load(sums), factor, load(products)));
    store(sums + kTile, fma(load(sums + kTile), factor, load(products + kTile)));
  }
}

// sums[row][ld] += products[row][32].
inline void add_products(const float* products, int64_t rows, float* sums, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i, products += kTileColumns, sums += ld) {
    store(sums, add(load(sums), load(products)));
    store(sums + kTile, add(load(sums + kTile), load(products + kTile)));
  }
}

// Sixteen rows, of which row(i) is null where there is none, as the second operand of scores: tile after tile
// of 32 columns. Returns whether they are ordinary.
template <class Row>
inline bool rows_to_tiles(const Row& row, int64_t columns, float* to) {
  Ordinary ordinary;
  for (int64_t k = 0; k < columns; k += kTileColumns, to += kTileFloats) {
    const __mmask32 live = tile_columns(columns - k);
    alignas(64) float words[kTileFloats];
    for (int i = 0; i < kTile; ++i) {
      const void* from = row(i);
      const I x = from == nullptr ? zero_bytes() : load_columns(from, k, live);
      ordinary.see(x);
      _mm512_store_si512(words + i * kTile, x);
    }
    I rows[kTile];
    load_quads(reinterpret_cast<const uint8_t*>(words), 64, rows);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) _mm512_storeu_si512(to + i * kTile, rows[i]);
  }
  return ordinary.all();
}

// Rows two by two, of which row(i) is null where there is none, as pairs: two rows in each word. Returns
// whether they are ordinary.
template <class Row>
inline bool rows_to_pairs(const Row& row, int64_t rows, int64_t columns, int64_t block_floats, float* pairs) {
  Ordinary ordinary;
  for (int64_t i = 0; i < rows; i += 2, pairs += kTile)
    for (int64_t k = 0; k < columns; k += kTileColumns) {
      const auto load = [&](const void* from) {
        const I x = from == nullptr ? zero_bytes() : load_columns(from, k, tile_columns(columns - k));
        ordinary.see(x);
        return x;
      };
      const I even = load(row(i)), odd = load(row(i + 1));
      store_pairs(even, odd, k, block_floats, pairs);
    }
  return ordinary.all();
}

// Thirty-two rows, of which row(i) is null where there is none, as the first operand of scores: [column /
// 32][32 rows][16 words]. Returns whether they are ordinary.
template <class Row>
inline bool copy_rows(const Row& row, int64_t columns, float* to) {
  Ordinary ordinary;
  for (int i = 0; i < kTileColumns; ++i, to += kTile) {
    const void* from = row(i);
    for (int64_t k = 0; k < columns; k += kTileColumns) {
      const I x = from == nullptr ? zero_bytes() : load_columns(from, k, tile_columns(columns - k));
      ordinary.see(x);
      _mm512_storeu_si512(to + k * kTile, x);
    }
  }
  return ordinary.all();
}

}  // namespace
