// Attention over a latent cache in the tiles of AMX, where q is bfloat16 and the cache too or of bytes.
// Bound: with many heads the softmax and what prepares operands, with few the memory. Included by
// isa_amx_bf16.cpp only.
//
// Keys are those of mla_keys_amx.h; values are paired 32 columns at a time, once for all rows, so that pairs
// stay in L1. This is done for the next keys and columns beside the products, of which few rows have too few
// to hide anything else. Of the next tile a line is fetched for every four rows that are paired: more of
// them, or any beside the scores, and what is in L2 would wait for the buffers that fetched lines take; the
// rest comes as it is needed.
//
// Numerics of one head: scores are products of amx_tile.h over the columns; the softmax is that of
// amx_softmax.h; weights are rounded to bfloat16, their sum is not; weighted values are products over
// the keys of a tile of 192. A query, or a part of its keys, that has numbers which are not ordinary
// (amx_attend.h) takes the float32 kernel, so bits depend on a query and its keys only.
#pragma once

#include <utility>

#include "cpu/amx_softmax.h"
#include "cpu/mla_attend_kernel.h"
#include "cpu/mla_keys_amx.h"

namespace {

constexpr int64_t kMlaRowsOfPart = 128;  // twice the others', as each part has to prepare the keys
static_assert(moela::cpu::kMlaSplit % kMlaTileKeys == 0, "tiles would straddle two parts");

inline bool is_for_tiles(const MlaProblem& p) {
  return p.q_dtype == Dtype::kBFloat16 && (p.cache.dtype == Dtype::kBFloat16 || is_of_bytes(p));
}
inline int64_t mla_tile_steps(const MlaProblem& p) { return (p.D() + kTileColumns - 1) / kTileColumns; }
inline int64_t mla_key_tile_floats(const MlaProblem& p) { return mla_tile_steps(p) * 2 * kTileFloats; }

// What a part uses while it runs: mla_tile_scratch_floats.
struct MlaTileScratch {
  MlaTileScratch(const MlaProblem& p, float* memory)
      : keys(memory),
        zeros(keys + kMlaTileKeys / kTileColumns * mla_key_tile_floats(p)),
        pairs{zeros + mla_tile_steps(p) * kTile, zeros + mla_tile_steps(p) * kTile + 2 * kMlaPairBlock},
        scores(pairs[1] + 2 * kMlaPairBlock),
        weights(scores + kMlaTileKeys * kMlaRowsOfPart),
        products(weights + kMlaTileKeys / 2 * kMlaRowsOfPart),
        rescale(products + 4 * kTileFloats) {}
  float* keys;      // [key / 32][column / 32][32 keys][16 words]
  float* zeros;     // the row of a key that there is not
  float* pairs[2];  // as in amx_attend.h, of 32 columns
  float* scores;    // [key][rows]
  float* weights;   // [rows / 16][key / 32], tiles
  float* products;  // [32][32]
  float* rescale;   // [rows]
};

int64_t mla_tile_scratch_floats(const MlaProblem& p) {
  const int64_t of_keys = kMlaTileKeys / kTileColumns * mla_key_tile_floats(p) + mla_tile_steps(p) * kTile;
  const int64_t in_tiles =
      of_keys + 4 * kMlaPairBlock + (kMlaTileKeys * 3 / 2 + 1) * kMlaRowsOfPart + 4 * kTileFloats;
  const int64_t in_float32 = mla_scratch_floats(p) + p.padded_D() * kMlaRowsOfPart;
  return in_tiles > in_float32 ? in_tiles : in_float32;
}

// Whether the rows of query `i` are ordinary, which mla_pack_tiles has noted.
inline float* note_of(const MlaProblem& p, const MlaQueries& q, int64_t i) {
  return q.packed + q.num_rows() * p.padded_D() + i;
}
// From sixteen rows to the next ones in `packed`: those of queries that are not ordinary are float32 numbers.
inline int64_t packed_tiles_floats(const MlaProblem& p) { return kTile * p.padded_D(); }

// Which of a query's heads are of the group depends on the number of threads: ordinary is a query of which
// all are.
void mla_pack_tiles(const MlaProblem& p, const MlaQueries& q) {
  for (int64_t i = 0; i < q.count; ++i) {
    bool are_ordinary = is_for_tiles(p);
    float* packed = q.packed + i * q.padded_heads() * p.padded_D();
    const auto* rows = static_cast<const uint16_t*>(p.q) + q.q_offset + i * p.stride_qt;
    for (int64_t first = 0; are_ordinary && first < q.num_heads; first += kTile)
      are_ordinary = rows_to_tiles(
          [&](int64_t h) { return first + h < q.num_heads ? rows + (first + h) * p.stride_qh : nullptr; },
          p.D(), packed + first / kTile * packed_tiles_floats(p));
    for (int64_t h = 0; are_ordinary && h < p.H; ++h)
      if (h < q.head || h >= q.head + q.num_heads)
        are_ordinary = is_ordinary(rows + (h - q.head) * p.stride_qh, p.D());
    if (!are_ordinary) mla_pack_query(p, q, i, packed);
    *note_of(p, q, i) = are_ordinary ? 1.f : 0.f;
  }
}

// scores[32 keys][rows] = keys @ q.
inline void scores_of_tile(const MlaProblem& p, const float* packed, int64_t rows, const TileOperand& keys,
                           float* scores, MlaKeyTile& beside) {
  for_pairs_of_tiles(rows / kTile, [&](int64_t tile, auto cols) {
    const TileOperand of_rows = whole_tiles(packed + tile * packed_tiles_floats(p), packed_tiles_floats(p));
    multiply_tiles<2, cols>(keys, of_rows, mla_tile_steps(p), scores + tile * kTile, rows, beside);
  });
}

// sums[row][ld] = sums * rescale + weights @ values.
inline void values_of_tiles(const MlaProblem& p, const MlaTileRows& keys, int64_t rows, int64_t tiles,
                            const MlaTileScratch& scratch, float* sums, Ordinary& ordinary,
                            MlaPrefetcher& next) {
  const int64_t ld = p.padded_latent();
  const auto pairs_of = [&](int64_t column) {
    return MlaPairs(p, keys, column < ld ? tiles * kTileColumns : 0, column,
                    scratch.pairs[column / kTileColumns % 2], ordinary, next);
  };
  pairs_of(0).finish();
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    const TileOperand values = whole_tiles(scratch.pairs[column / kTileColumns % 2], kMlaPairBlock);
    MlaPairs beside = pairs_of(column + kTileColumns);
    for_pairs_of_tiles(rows / kTile, [&](int64_t tile, auto rows_of_tiles) {
      const TileOperand weights =
          whole_tiles(scratch.weights + tile * tiles * kTileFloats, tiles * kTileFloats);
      multiply_tiles<rows_of_tiles, 2>(weights, values, tiles, scratch.products, kTileColumns, beside);
      add_products(scratch.products, rows_of_tiles * kTile, scratch.rescale + tile * kTile,
                   sums + tile * kTile * ld + column, ld);
    });
    beside.finish();
  }
}

// Queries [from, to), whose rows are ordinary. Returns false, with their sums undone, where a key is not.
bool attend_in_tiles(const MlaProblem& p, const MlaQueries& q, int64_t from, int64_t to, int64_t part,
                     float* memory) {
  const int64_t heads = q.padded_heads(), rows = (to - from) * heads, ld = p.padded_latent();
  const float* packed = q.packed + from * heads * p.padded_D();
  const MlaSums sums = mla_sums(p, q, part, from);
  const MlaTileScratch scratch(p, memory);
  std::memset(sums.values, 0, rows * ld * sizeof(float));
  std::memset(sums.weights, 0, rows * sizeof(float));
  std::memset(scratch.zeros, 0, mla_tile_steps(p) * kTile * sizeof(float));
  for (int64_t row = 0; row < rows; ++row) sums.max[row] = kNoScore;
  const moela::cpu::MlaKeys seen_keys = q.keys_of(to - 1);
  const int64_t first = part * moela::cpu::kMlaSplit, left_keys = seen_keys.count - first;
  const int64_t end = first + (left_keys < moela::cpu::kMlaSplit ? left_keys : moela::cpu::kMlaSplit);
  const uint8_t *keys_of[2][kMlaTileKeys], **keys = keys_of[0], **next = keys_of[1];
  // Of keys from `key` on; of those that there are not, the zeros.
  const auto locate = [&](int64_t key, const uint8_t** to) {
    for (int64_t t = locate_rows(p.cache, seen_keys, key, kMlaTileKeys, to); t < kMlaTileKeys; ++t)
      to[t] = reinterpret_cast<const uint8_t*>(scratch.zeros);
  };
  locate(first, next);
  // Where rows of bytes are decoded to.
  const uint8_t* copies[kMlaTileKeys];
  for (int64_t t = 0; t < kMlaTileKeys; ++t)
    copies[t] = reinterpret_cast<const uint8_t*>(scratch.keys + t / kTileColumns * mla_key_tile_floats(p) +
                                                 t % kTileColumns * kTile);
  Ordinary ordinary;
  const Tiles registers;
  for (int64_t key = first; key < end; key += kMlaTileKeys) {
    const int64_t left = end - key, count = left < kMlaTileKeys ? left : kMlaTileKeys;
    const int64_t tiles = (count + kTileColumns - 1) / kTileColumns;
    std::swap(keys, next);
    locate(key + count, next);
    for (int64_t t = 0; is_of_bytes(p) && t < count; ++t)
      if (!are_codes_ordinary(p.cache, keys[t])) return false;
    MlaPrefetcher prefetcher(next, kMlaTileKeys, mla_row_bytes(p.cache));
    const auto tile_of = [&](int64_t tile) {
      return MlaKeyTile(p, keys + tile * kTileColumns, scratch.keys + tile * mla_key_tile_floats(p),
                        ordinary);
    };
    MlaKeyTile tile = tile_of(0);
    for (int64_t t = 0; t < tiles; ++t) {
      const TileOperand operand = tile.operand();
      if (t + 1 < tiles) tile = tile_of(t + 1);
      scores_of_tile(p, packed, rows, operand, scratch.scores + t * kTileColumns * rows, tile);
    }
    for (int64_t row = 0; row < rows; row += kTile) {
      const int64_t left_of_query = q.num_keys(from + row / heads) - key;
      const int64_t seen = left_of_query < 0 ? 0 : left_of_query < count ? left_of_query : count;
      softmax_to_tiles({.max = sums.max + row, .sum = sums.weights + row, .rescale = scratch.rescale + row},
                       p.sm_scale, scratch.scores + row, rows, seen, seen, tiles,
                       scratch.weights + row / kTile * tiles * kTileFloats);
    }
    const MlaTileRows values = is_of_bytes(p)
                                   ? MlaTileRows{.rows = copies, .step = 2 * kTileFloats * sizeof(float)}
                                   : MlaTileRows{.rows = keys, .step = kTileColumns * sizeof(uint16_t)};
    values_of_tiles(p, values, rows, tiles, scratch, sums.values, ordinary, prefetcher);
  }
  if (!ordinary.all()) return false;
  for (float* x = sums.values; x < sums.values + rows * ld; x += kTileColumns)
    in_order(x, set1(1 / kWeightFactor), x);
  return true;
}

// A query by itself, which has the same bits as with others.
void attend_one(const MlaProblem& p, const MlaQueries& q, int64_t i, int64_t part, float* scratch) {
  const float* packed = q.packed + i * q.padded_heads() * p.padded_D();
  if (*note_of(p, q, i) == 0.f) return attend_queries(p, q, i, i + 1, part, packed, scratch);
  if (attend_in_tiles(p, q, i, i + 1, part, scratch)) return;
  mla_pack_query(p, q, i, scratch);
  attend_queries(p, q, i, i + 1, part, scratch, scratch + q.padded_heads() * p.padded_D());
}

void mla_attend_tiles(const MlaProblem& p, const MlaQueries& q, int64_t part, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  bool is_ordinary = true;
  for (int64_t i = 0; i < q.count; ++i) is_ordinary &= *note_of(p, q, i) != 0.f;
  if (is_ordinary && q.count > 1 && attend_in_tiles(p, q, 0, q.count, part, scratch)) return;
  for (int64_t i = 0; i < q.count; ++i) attend_one(p, q, i, part, scratch);
}

constexpr moela::cpu::MlaKernels kMlaTileKernels = {kMlaRowsOfPart, mla_tile_scratch_floats, mla_pack_tiles,
                                                    mla_attend_tiles, mla_merge};

}  // namespace
