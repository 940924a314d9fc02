// Attention over a latent cache in the tiles of AMX, where q and the cache are bfloat16. Bound: with many
// heads the softmax and what prepares operands, with few the memory. Included by isa_amx_bf16.cpp only.
//
// A tile of keys is copied and its values are paired once for all heads; scores, softmax and weighted values
// follow, while the next tile is fetched.
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
static_assert(moela::cpu::kMlaSplit % kMlaTileKeys == 0, "tiles would straddle two parts");
constexpr int64_t kMlaPairBlock = pair_block_floats(kMlaTileKeys / 2);

inline bool is_for_tiles(const MlaProblem& p) {
  return p.q_dtype == Dtype::kBFloat16 && p.cache.dtype == Dtype::kBFloat16;
}
inline int64_t mla_tile_steps(const MlaProblem& p) { return (p.D() + kTileColumns - 1) / kTileColumns; }
// From key to key, in words: an odd number of cache lines.
inline int64_t mla_key_words(const MlaProblem& p) { return (mla_tile_steps(p) | 1) * kTile; }

// What a part uses while it runs.
struct MlaTileScratch {
  MlaTileScratch(const MlaProblem& p, float* memory)
      : keys(memory),
        pairs(keys + kMlaTileKeys * mla_key_words(p)),
        scores(pairs + p.padded_latent() / kTile * kMlaPairBlock),
        weights(scores + kMlaTileKeys * moela::cpu::kMlaHeads),
        products(weights + kMlaTileKeys / 2 * moela::cpu::kMlaHeads),
        rescale(products + 4 * kTileFloats),
        end(rescale + moela::cpu::kMlaHeads) {}
  float* keys;      // [key][mla_key_words] of two columns
  float* pairs;     // as in amx_attend.h
  float* scores;    // [key][heads]
  float* weights;   // [heads / 16][key / 32], tiles
  float* products;  // [32][32]
  float* rescale;   // [heads]
  float* end;
};

int64_t mla_tile_scratch_floats(const MlaProblem& p) {
  float* const begin = nullptr;
  const int64_t in_tiles = MlaTileScratch(p, begin).end - begin;
  const int64_t in_float32 = mla_scratch_floats(p) + (p.padded_D() + 1) * moela::cpu::kMlaHeads;
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

// Rows of keys to keys and pairs, up to whole tiles of 32 with zeros. Returns whether they are ordinary.
inline bool load_keys(const MlaProblem& p, const uint8_t* const* rows, int64_t count,
                      const MlaTileScratch& scratch) {
  const int64_t D = p.D(), latent = p.padded_latent(), key_words = mla_key_words(p);
  const int64_t padded = (count + kTileColumns - 1) / kTileColumns * kTileColumns;
  Ordinary ordinary;
  for (int64_t t = 0; t < padded; t += 2) {
    const auto row = [&](int64_t key) {
      return key < count ? reinterpret_cast<const uint16_t*>(rows[key]) : nullptr;
    };
    const uint16_t *even = row(t), *odd = row(t + 1);
    float* keys = scratch.keys + t * key_words;
    float* pair = scratch.pairs + t / 2 * kTile;
    for (int64_t k = 0; k < D; k += kTileColumns, keys += kTile) {
      const I x = load_tile_columns(even, k, D), y = load_tile_columns(odd, k, D);
      ordinary.see(x);
      ordinary.see(y);
      _mm512_storeu_si512(keys, x);
      _mm512_storeu_si512(keys + key_words, y);
      if (k < latent) store_pairs(x, y, k, kMlaPairBlock, pair);
    }
  }
  return ordinary.all();
}

// Fetches some lines with every step.
struct MlaFetch {
  MlaPrefetcher& lines;
  int64_t lines_of_step;
  MOELA_INLINE void step() const {
    for (int64_t i = 0; i < lines_of_step; ++i) lines.step();
  }
};

// Scores of whole tiles of 32 keys.
inline void scores_of_tiles(const MlaProblem& p, const MlaQuery& q, int64_t tiles,
                            const MlaTileScratch& scratch, const MlaFetch& fetch) {
  const int64_t heads = q.padded_heads(), steps = mla_tile_steps(p), key_words = mla_key_words(p);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const TileOperand keys = {.words = scratch.keys + tile * 2 * kTile * key_words,
                              .row = key_words,
                              .second = kTile * key_words,
                              .step = kTile};
    for_pairs_of_tiles(heads / kTile, [&](int64_t head, auto cols) {
      const TileOperand of_heads = whole_tiles(q.packed + head * steps * kTileFloats, steps * kTileFloats);
      multiply_tiles<2, cols>(keys, of_heads, steps, scratch.scores + tile * 2 * kTile * heads + head * kTile,
                              heads, fetch);
    });
  }
}

// sums[head][ld] = sums * rescale + weights @ values.
inline void values_of_tiles(int64_t heads, int64_t ld, int64_t tiles, const MlaTileScratch& scratch,
                            float* sums, const MlaFetch& fetch) {
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    const TileOperand values = whole_tiles(scratch.pairs + column / kTile * kMlaPairBlock, kMlaPairBlock);
    for_pairs_of_tiles(heads / kTile, [&](int64_t tile, auto rows) {
      const TileOperand weights =
          whole_tiles(scratch.weights + tile * tiles * kTileFloats, tiles * kTileFloats);
      multiply_tiles<rows, 2>(weights, values, tiles, scratch.products, kTileColumns, fetch);
      for (int i = 0; i < rows * kTile; ++i) {
        const int64_t head = tile * kTile + i;
        const F factor = set1(scratch.rescale[head]);
        float* to = sums + head * ld + column;
        const float* products = scratch.products + i * kTileColumns;
        store(to, fma(load(to), factor, load(products)));
        store(to + kTile, fma(load(to + kTile), factor, load(products + kTile)));
      }
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
    if (!load_keys(p, rows, count, scratch)) return false;
    const int64_t row_bytes = mla_row_bytes(p.cache);
    MlaPrefetcher lines(next, locate_rows(p.cache, q.keys, key + count, kMlaTileKeys, next), row_bytes);
    const int64_t pairs_of_heads = (heads / kTile + 1) / 2;
    const int64_t steps = pairs_of_heads * tiles * (mla_tile_steps(p) + ld / kTileColumns);
    const MlaFetch fetch = {lines, kMlaTileKeys * (row_bytes + 63) / 64 / steps + 1};
    scores_of_tiles(p, q, tiles, scratch, fetch);
    softmax_tile(softmax, p.sm_scale, count, scratch.scores);
    std::memset(scratch.scores + count * heads, 0, (tiles * kTileColumns - count) * heads * sizeof(float));
    for (int64_t head = 0; head < heads; head += kTile)
      weights_to_tiles(scratch.scores + head, heads, tiles,
                       scratch.weights + head / kTile * tiles * kTileFloats);
    values_of_tiles(heads, ld, tiles, scratch, sums, fetch);
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

constexpr moela::cpu::MlaKernels kMlaTileKernels = {mla_tile_scratch_floats, mla_pack_tiles, mla_attend_tiles,
                                                    mla_merge};

}  // namespace
