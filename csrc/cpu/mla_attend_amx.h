// Attention over a latent cache in the tiles of AMX, where q and the cache are bfloat16. Bound: with many
// heads the softmax and what prepares operands, with few the memory. Included by isa_amx_bf16.cpp only.
//
// Keys are multiplied where they lie, if a step apart, or from a copy; values are paired 32 columns at a
// time, once for all heads, so that pairs stay in L1. This is done for the next keys and columns, and the
// next tile is fetched, beside the products, of which few heads have too few to hide anything else.
//
// Numerics of one head: scores are products of amx_tile.h over the columns; the softmax is that of
// amx_softmax.h; weights are rounded to bfloat16, their sum is not; weighted values are products over
// the keys of a tile of 192. A query, or a part of its keys, that has numbers which are not ordinary
// (amx_attend.h) takes the float32 kernel, so bits depend on a query and its keys only.
#pragma once

#include <utility>

#include "cpu/amx_softmax.h"
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

// What a part uses while it runs: mla_tile_scratch_floats.
struct MlaTileScratch {
  MlaTileScratch(const MlaProblem& p, float* memory)
      : keys{memory, memory + 2 * mla_tile_steps(p) * kTileFloats},
        zeros(keys[1] + 2 * mla_tile_steps(p) * kTileFloats),
        pairs{zeros + mla_tile_steps(p) * kTile, zeros + mla_tile_steps(p) * kTile + 2 * kMlaPairBlock},
        scores(pairs[1] + 2 * kMlaPairBlock),
        weights(scores + kMlaTileKeys * kMlaTileHeads),
        products(weights + kMlaTileKeys / 2 * kMlaTileHeads),
        rescale(products + 4 * kTileFloats) {}
  float* keys[2];   // [column / 32][32 keys][16 words]
  float* zeros;     // the row of a key that there is not
  float* pairs[2];  // as in amx_attend.h, of 32 columns
  float* scores;    // [key][heads]
  float* weights;   // [heads / 16][key / 32], tiles
  float* products;  // [32][32]
  float* rescale;   // [heads]
};

int64_t mla_tile_scratch_floats(const MlaProblem& p) {
  const int64_t of_keys = mla_tile_steps(p) * (4 * kTileFloats + kTile);
  const int64_t in_tiles =
      of_keys + 4 * kMlaPairBlock + (kMlaTileKeys * 3 / 2 + 1) * kMlaTileHeads + 4 * kTileFloats;
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

// Of the lines of the next tile some are fetched beside scores, the others beside values.
constexpr bool is_fetched_beside_scores(int64_t column, int64_t values) {
  return column >= values || column / kTileColumns % 3 == 0;
}

// Makes 32 rows the first operand of scores: where they lie, or a copy. Sees columns beyond those of values.
class MlaKeyTile {
 public:
  MlaKeyTile(const MlaProblem& p, const uint8_t* const* rows, const uint8_t* const* next, float* copy,
             Ordinary& ordinary)
      : rows_(rows), next_(next), copy_(copy), ordinary_(&ordinary), D_(p.D()), values_(p.padded_latent()) {
    const int64_t step = rows[1] - rows[0];
    are_tiles_ = D_ % kTileColumns == 0 && step % 4 == 0;
    for (int64_t t = 1; are_tiles_ && t < kTileColumns; ++t) are_tiles_ = rows[t] - rows[t - 1] == step;
  }

  // 32 columns.
  MOELA_INLINE void step() {
    if (column_ >= D_) return;
    const int64_t column = column_;
    const __mmask32 live = tile_columns(D_ - column);
    if (!are_tiles_)
      for (int64_t t = 0; t < kTileColumns; ++t)
        _mm512_storeu_si512(copy_ + column * kTile + t * kTile, load_columns(rows_[t], column, live));
    if (column >= values_)
      for (int64_t t = 0; t < kTileColumns; ++t) ordinary_->see(load_columns(rows_[t], column, live));
    if (is_fetched_beside_scores(column, values_))
      for (int64_t t = 0; t < kTileColumns; ++t) prefetch_l2(next_[t] + 2 * column);
    column_ += kTileColumns;
  }

  TileOperand operand() {
    while (column_ < D_) step();
    const int64_t row = (rows_[1] - rows_[0]) / 4;
    if (are_tiles_)
      return {.words = reinterpret_cast<const float*>(rows_[0]),
              .row = row,
              .second = row * kTile,
              .step = kTile};
    return {.words = copy_, .row = kTile, .second = kTileFloats, .step = 2 * kTileFloats};
  }

 private:
  const uint8_t *const *rows_, *const *next_;
  float* copy_;
  Ordinary* ordinary_;
  int64_t D_, values_, column_ = 0;
  bool are_tiles_;
};

// Makes 32 columns of some rows the second operand of values. Sees them, and fetches those of the next tile.
class MlaPairs {
 public:
  MlaPairs(const MlaProblem& p, const uint8_t* const* rows, const uint8_t* const* next, int64_t count,
           int64_t column, float* pairs, Ordinary& ordinary)
      : rows_(rows),
        next_(next),
        end_(rows + count),
        pairs_(pairs),
        column_(column),
        ordinary_(&ordinary),
        is_fetched_(!is_fetched_beside_scores(column, p.padded_latent())),
        live_(tile_columns(p.D() - column)) {}

  // 32 rows.
  MOELA_INLINE void step() {
    if (rows_ == end_) return;
    // Copies of members, which stores to memory would make it load again.
    const auto *rows = rows_, *next = next_, *end = rows_ + kTileColumns;
    const int64_t column = column_;
    const __mmask32 live = live_;
    float* pairs = pairs_;
    Ordinary ordinary = *ordinary_;
    for (; rows != end; rows += 2, pairs += kTile) {
      const I x = load_columns(rows[0], column, live), y = load_columns(rows[1], column, live);
      ordinary.see(x);
      ordinary.see(y);
      store_pairs(x, y, 0, kMlaPairBlock, pairs);
    }
    *ordinary_ = ordinary;
    if (is_fetched_)
      for (int64_t t = 0; t < kTileColumns; ++t) prefetch_l2(next[t] + 2 * column);
    rows_ = rows;
    next_ += kTileColumns;
    pairs_ = pairs;
  }
  void finish() {
    while (rows_ != end_) step();
  }

 private:
  const uint8_t *const *rows_, *const *next_, *const *end_;
  float* pairs_;
  int64_t column_;
  Ordinary* ordinary_;
  bool is_fetched_;
  __mmask32 live_;
};

// scores[32 keys][heads] = keys @ q.
inline void scores_of_tile(const MlaProblem& p, const MlaQuery& q, const TileOperand& keys, float* scores,
                           MlaKeyTile& beside) {
  const int64_t heads = q.padded_heads(), steps = mla_tile_steps(p);
  for_pairs_of_tiles(heads / kTile, [&](int64_t head, auto cols) {
    const TileOperand of_heads = whole_tiles(q.packed + head * steps * kTileFloats, steps * kTileFloats);
    multiply_tiles<2, cols>(keys, of_heads, steps, scores + head * kTile, heads, beside);
  });
}

// sums[head][ld] = sums * rescale + weights @ values.
inline void values_of_tiles(const MlaProblem& p, const uint8_t* const* rows, const uint8_t* const* next,
                            int64_t heads, int64_t tiles, const MlaTileScratch& scratch, float* sums,
                            Ordinary& ordinary) {
  const int64_t ld = p.padded_latent();
  const auto pairs_of = [&](int64_t column) {
    return MlaPairs(p, rows, next, column < ld ? tiles * kTileColumns : 0, column,
                    scratch.pairs[column / kTileColumns % 2], ordinary);
  };
  pairs_of(0).finish();
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    const TileOperand values = whole_tiles(scratch.pairs[column / kTileColumns % 2], kMlaPairBlock);
    MlaPairs beside = pairs_of(column + kTileColumns);
    for_pairs_of_tiles(heads / kTile, [&](int64_t tile, auto rows_of_tiles) {
      const TileOperand weights =
          whole_tiles(scratch.weights + tile * tiles * kTileFloats, tiles * kTileFloats);
      multiply_tiles<rows_of_tiles, 2>(weights, values, tiles, scratch.products, kTileColumns, beside);
      add_products(scratch.products, rows_of_tiles * kTile, scratch.rescale + tile * kTile,
                   sums + tile * kTile * ld + column, ld);
    });
    beside.finish();
  }
}

// Returns false, with the sums undone, where a key is not ordinary.
bool attend_in_tiles(const MlaProblem& p, const MlaQuery& q, int64_t part, float* memory) {
  const int64_t heads = q.padded_heads(), ld = p.padded_latent();
  float* sums = q.parts + part * moela::cpu::mla_part_floats(p, q);
  const MlaTileScratch scratch(p, memory);
  float *max = sums + heads * ld, *sum = max + heads;
  std::memset(sums, 0, heads * (ld + 2) * sizeof(float));
  std::memset(scratch.zeros, 0, mla_tile_steps(p) * kTile * sizeof(float));
  for (int64_t h = 0; h < heads; ++h) max[h] = kNoScore;
  const int64_t first = part * moela::cpu::kMlaSplit;
  const int64_t end =
      first + moela::cpu::kMlaSplit < q.keys.count ? first + moela::cpu::kMlaSplit : q.keys.count;
  const uint8_t *rows_of[2][kMlaTileKeys], **rows = rows_of[0], **next = rows_of[1];
  // Of keys from `key` on; of those that there are not, the zeros.
  const auto locate = [&](int64_t key, const uint8_t** to) {
    for (int64_t t = locate_rows(p.cache, q.keys, key, kMlaTileKeys, to); t < kMlaTileKeys; ++t)
      to[t] = reinterpret_cast<const uint8_t*>(scratch.zeros);
  };
  locate(first, next);
  Ordinary ordinary;
  const Tiles registers;
  for (int64_t key = first; key < end; key += kMlaTileKeys) {
    const int64_t left = end - key, count = left < kMlaTileKeys ? left : kMlaTileKeys;
    const int64_t tiles = (count + kTileColumns - 1) / kTileColumns;
    std::swap(rows, next);
    locate(key + count, next);
    const auto keys_of = [&](int64_t tile) {
      return MlaKeyTile(p, rows + tile * kTileColumns, next + tile * kTileColumns, scratch.keys[tile % 2],
                        ordinary);
    };
    MlaKeyTile keys = keys_of(0);
    for (int64_t t = 0; t < tiles; ++t) {
      const TileOperand operand = keys.operand();
      if (t + 1 < tiles) keys = keys_of(t + 1);
      scores_of_tile(p, q, operand, scratch.scores + t * kTileColumns * heads, keys);
    }
    for (int64_t head = 0; head < heads; head += kTile)
      softmax_to_tiles({.max = max + head, .sum = sum + head, .rescale = scratch.rescale + head}, p.sm_scale,
                       scratch.scores + head, heads, count, count, tiles,
                       scratch.weights + head / kTile * tiles * kTileFloats);
    values_of_tiles(p, rows, next, heads, tiles, scratch, sums, ordinary);
  }
  if (!ordinary.all()) return false;
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
