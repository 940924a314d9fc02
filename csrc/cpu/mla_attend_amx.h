// Attention over a latent cache in the tiles of AMX, where q and the cache are bfloat16. Bound: with many
// heads the softmax and what prepares operands, with few the memory. Included by isa_amx_bf16.cpp only.
//
// Keys are multiplied where they lie, a step apart, or from a copy. Values are paired 32 columns at a time, once
// for all heads, so that pairs stay in L1. Beside all this the next tile is fetched.
//
// Numerics of one head: scores are products of amx_tile.h over the columns; the softmax is that of
// mla_attend_kernel.h; weights are rounded to bfloat16, their sum is not; weighted values are products over
// the keys of a tile of 192. A query, or a part of its keys, that has numbers which are not ordinary
// (amx_attend.h) takes the float32 kernel, so bits depend on a query and its keys only.
#pragma once

#include "cpu/amx_attend.h"
#include "cpu/mla_attend_kernel.h"

namespace {

constexpr int64_t kMlaTileKeys = 192;
constexpr int64_t kMlaTileHeads = 128;  // of a part: twice the others', as each has to prepare the keys
static_assert(moela::cpu::kMlaSplit % kMlaTileKeys == 0, "tiles would straddle two parts");
constexpr int64_t kMlaPairBlock = pair_block_floats(kMlaTileKeys / 2);

inline bool is_for_tiles(const MlaProblem& p) {
  return p.q_dtype == Dtype::kBFloat16 && p.cache.dtype == Dtype::kBFloat16;
}
inline int64_t mla_tile_steps(const MlaProblem& p) { return (p.D() + kTileColumns - 1) / kTileColumns; }

// What a part uses while it runs.
struct MlaTileScratch {
  MlaTileScratch(const MlaProblem& p, float* memory)
      : keys(memory),
        pairs(keys + 2 * mla_tile_steps(p) * kTileFloats),
        scores(pairs + 2 * kMlaPairBlock),
        weights(scores + kMlaTileKeys * kMlaTileHeads),
        products(weights + kMlaTileKeys / 2 * kMlaTileHeads),
        rescale(products + 4 * kTileFloats),
        end(rescale + kMlaTileHeads) {}
  float* keys;      // [column / 32][32 keys][16 words]: stays in L1
  float* pairs;     // as in amx_attend.h, of 32 columns
  float* scores;    // [key][heads]
  float* weights;   // [heads / 16][key / 32], tiles
  float* products;  // [32][32]
  float* rescale;   // [heads]
  float* end;
};

int64_t mla_tile_scratch_floats(const MlaProblem& p) {
  float* const begin = nullptr;
  const int64_t in_tiles = MlaTileScratch(p, begin).end - begin;
  const int64_t in_float32 = mla_scratch_floats(p) + (p.padded_D() + 1) * kMlaTileHeads;
  return in_tiles > in_float32 ? in_tiles : in_float32;
}

// Whether the rows of q are ordinary, which mla_pack_tiles has noted.
inline float* note_of(const MlaProblem& p, const MlaQuery& q) {
  return q.packed + q.padded_heads() * p.padded_D();
}

void mla_pack_tiles(const MlaProblem& p, const MlaQuery& q) {
  bool is_ordinary = is_for_tiles(p);
  const auto* rows = static_cast<const uint16_t*>(p.q) + q.q_offset;
  for (int64_t first = 0; is_ordinary && first < q.num_heads; first += kTile)
    is_ordinary = rows_to_tiles(
        [&](int64_t i) { return first + i < q.num_heads ? rows + (first + i) * p.stride_qh : nullptr; },
        p.D(), q.packed + first / kTile * mla_tile_steps(p) * kTileFloats);
  if (!is_ordinary) mla_pack(p, q);
  *note_of(p, q) = is_ordinary ? 1.f : 0.f;
}

// Fetches some lines with every step.
struct MlaFetch {
  MlaPrefetcher& lines;
  int64_t lines_of_step;
  MOELA_INLINE void step() const {
    for (int64_t i = 0; i < lines_of_step; ++i) lines.step();
  }
};

// Whether rows can be multiplied where they lie: whole tiles of them, a step apart.
inline bool are_tiles(const MlaProblem& p, const uint8_t* const* rows, int64_t count) {
  const int64_t step = rows[1] - rows[0];
  bool are_steps = count >= kTileColumns && p.D() % kTileColumns == 0 && step % 4 == 0;
  for (int64_t t = 1; are_steps && t < kTileColumns; ++t) are_steps = rows[t] - rows[t - 1] == step;
  return are_steps;
}

// Thirty-two keys, zeros from `count` on, as the first operand of scores. Row after row, as memory likes it.
inline TileOperand load_keys(const MlaProblem& p, const uint8_t* const* rows, int64_t count, float* copy,
                             Ordinary& ordinary) {
  const int64_t D = p.D();
  if (are_tiles(p, rows, count)) {
    for (int64_t t = 0; t < kTileColumns; ++t)
      for (int64_t k = 0; k < D; k += kTileColumns) ordinary.see(load_columns(rows[t], k, ~__mmask32{0}));
    const int64_t row = (rows[1] - rows[0]) / 4;
    return {.words = reinterpret_cast<const float*>(rows[0]),
            .row = row,
            .second = row * kTile,
            .step = kTile};
  }
  for (int64_t t = 0; t < kTileColumns; ++t)
    for (int64_t k = 0; k < D; k += kTileColumns) {
      const I x = t < count ? load_columns(rows[t], k, tile_columns(D - k)) : zero_bytes();
      ordinary.see(x);
      _mm512_storeu_si512(copy + k * kTileColumns / 2 + t * kTile, x);
    }
  return {.words = copy, .row = kTile, .second = kTileFloats, .step = 2 * kTileFloats};
}

// scores[32 keys][heads] = keys @ q.
inline void scores_of_tile(const MlaProblem& p, const MlaQuery& q, const TileOperand& keys, float* scores,
                           const MlaFetch& fetch) {
  const int64_t heads = q.padded_heads(), steps = mla_tile_steps(p);
  for_pairs_of_tiles(heads / kTile, [&](int64_t head, auto cols) {
    const TileOperand of_heads = whole_tiles(q.packed + head * steps * kTileFloats, steps * kTileFloats);
    multiply_tiles<2, cols>(keys, of_heads, steps, scores + head * kTile, heads, fetch);
  });
}

// Columns [column, column + 32) of whole tiles of 32 keys, zeros from `count` on.
inline void load_pairs(const MlaProblem& p, const uint8_t* const* rows, int64_t count, int64_t tiles,
                       int64_t column, float* pairs, const MlaFetch& fetch) {
  const __mmask32 live = tile_columns(p.D() - column);
  int64_t t = 0;
  for (; t + 1 < count; t += 2, pairs += kTile) {
    store_pairs(load_columns(rows[t], column, live), load_columns(rows[t + 1], column, live), 0,
                kMlaPairBlock, pairs);
    fetch.step();
  }
  for (; t < tiles * kTileColumns; t += 2, pairs += kTile)
    store_pairs(t < count ? load_columns(rows[t], column, live) : zero_bytes(), zero_bytes(), 0,
                kMlaPairBlock, pairs);
}

// sums[head][ld] = sums * rescale + weights @ values.
inline void values_of_tiles(const MlaProblem& p, const uint8_t* const* rows, int64_t count, int64_t heads,
                            int64_t tiles, const MlaTileScratch& scratch, float* sums,
                            const MlaFetch& fetch) {
  const int64_t ld = p.padded_latent();
  const TileOperand values = whole_tiles(scratch.pairs, kMlaPairBlock);
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    load_pairs(p, rows, count, tiles, column, scratch.pairs, fetch);
    for_pairs_of_tiles(heads / kTile, [&](int64_t tile, auto rows_of_tiles) {
      const TileOperand weights =
          whole_tiles(scratch.weights + tile * tiles * kTileFloats, tiles * kTileFloats);
      multiply_tiles<rows_of_tiles, 2>(weights, values, tiles, scratch.products, kTileColumns, fetch);
      add_products(scratch.products, rows_of_tiles * kTile, scratch.rescale + tile * kTile,
                   sums + tile * kTile * ld + column, ld);
    });
  }
}

// Returns false, with the sums undone, where a key is not ordinary.
bool attend_in_tiles(const MlaProblem& p, const MlaQuery& q, int64_t part, float* memory) {
  const int64_t heads = q.padded_heads(), ld = p.padded_latent();
  float* sums = q.parts + part * moela::cpu::mla_part_floats(p, q);
  const MlaTileScratch scratch(p, memory);
  const MlaSoftmax softmax = {
      .max = sums + heads * ld, .sum = sums + heads * (ld + 1), .rescale = scratch.rescale, .heads = heads};
  std::memset(sums, 0, heads * (ld + 2) * sizeof(float));
  for (int64_t h = 0; h < heads; ++h) softmax.max[h] = kNoScore;
  const int64_t first = part * moela::cpu::kMlaSplit;
  const int64_t end =
      first + moela::cpu::kMlaSplit < q.keys.count ? first + moela::cpu::kMlaSplit : q.keys.count;
  const uint8_t *rows[kMlaTileKeys], *next[kMlaTileKeys];
  const Tiles registers;
  for (int64_t key = first; key < end; key += kMlaTileKeys) {
    const int64_t left = end - key, count = left < kMlaTileKeys ? left : kMlaTileKeys;
    const int64_t tiles = (count + kTileColumns - 1) / kTileColumns;
    locate_rows(p.cache, q.keys, key, count, rows);
    const int64_t row_bytes = mla_row_bytes(p.cache);
    MlaPrefetcher lines(next, locate_rows(p.cache, q.keys, key + count, kMlaTileKeys, next), row_bytes);
    const int64_t steps = tiles * (ld / 2 + (heads / kTile + 1) / 2 * (mla_tile_steps(p) + ld / kTileColumns));
    const MlaFetch fetch = {lines, kMlaTileKeys * (row_bytes + 63) / 64 / steps + 1};
    Ordinary ordinary;
    for (int64_t t = 0; t < count; t += kTileColumns) {
      const TileOperand keys = load_keys(p, rows + t, count - t, scratch.keys, ordinary);
      scores_of_tile(p, q, keys, scratch.scores + t * heads, fetch);
    }
    if (!ordinary.all()) return false;
    softmax_tile(softmax, p.sm_scale, count, scratch.scores);
    std::memset(scratch.scores + count * heads, 0, (tiles * kTileColumns - count) * heads * sizeof(float));
    for (int64_t head = 0; head < heads; head += kTile)
      weights_to_tiles(scratch.scores + head, heads, tiles,
                       scratch.weights + head / kTile * tiles * kTileFloats);
    values_of_tiles(p, rows, count, heads, tiles, scratch, sums, fetch);
  }
  for (float* x = sums; x < sums + heads * ld; x += kTileColumns) in_order(x, set1(1 / kWeightFactor), x);
  return true;
}

void mla_attend_tiles(const MlaProblem& p, const MlaQuery& q, int64_t part, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  if (*note_of(p, q) == 0.f) return mla_attend(p, q, part, scratch);
  if (attend_in_tiles(p, q, part, scratch)) return;
  MlaQuery again = q;
  again.packed = scratch;
  mla_pack(p, again);
  mla_attend(p, again, part, scratch + moela::cpu::mla_packed_floats(p, again));
}

constexpr moela::cpu::MlaKernels kMlaTileKernels = {kMlaTileHeads, mla_tile_scratch_floats, mla_pack_tiles,
                                                    mla_attend_tiles, mla_merge};

}  // namespace
