// Attention over a latent cache in the tiles of AMX, where q and the cache are bfloat16. Bound: with many
// heads the softmax and what prepares operands, with few the memory. Included by isa_amx_bf16.cpp only.
//
// Keys are multiplied where they lie, if a step apart, or from a copy; values are paired 32 columns at a
// time, once for all rows, so that pairs stay in L1. This is done for the next keys and columns beside the
// products, of which few rows have too few to hide anything else. Of the next tile a line is fetched for
// every four rows that are paired: more of them, or any beside the scores, and what is in L2 would wait for
// the buffers that fetched lines take; the rest comes as it is needed.
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
constexpr int64_t kMlaTileRows = 128;  // of a part: twice the others', as each has to prepare the keys
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
        weights(scores + kMlaTileKeys * kMlaTileRows),
        products(weights + kMlaTileKeys / 2 * kMlaTileRows),
        rescale(products + 4 * kTileFloats) {}
  float* keys[2];   // [column / 32][32 keys][16 words]
  float* zeros;     // the row of a key that there is not
  float* pairs[2];  // as in amx_attend.h, of 32 columns
  float* scores;    // [key][rows]
  float* weights;   // [rows / 16][key / 32], tiles
  float* products;  // [32][32]
  float* rescale;   // [rows]
};

int64_t mla_tile_scratch_floats(const MlaProblem& p) {
  const int64_t of_keys = mla_tile_steps(p) * (4 * kTileFloats + kTile);
  const int64_t in_tiles =
      of_keys + 4 * kMlaPairBlock + (kMlaTileKeys * 3 / 2 + 1) * kMlaTileRows + 4 * kTileFloats;
  const int64_t in_float32 = mla_scratch_floats(p) + p.padded_D() * kMlaTileRows;
  return in_tiles > in_float32 ? in_tiles : in_float32;
}

// Whether the rows of query `i` are ordinary, which mla_pack_tiles has noted.
inline float* note_of(const MlaProblem& p, const MlaQueries& q, int64_t i) {
  return q.packed + q.num_rows() * p.padded_D() + i;
}
// From sixteen rows to the next ones in `packed`: those of queries that are not ordinary are float32 numbers.
inline int64_t packed_tiles_floats(const MlaProblem& p) { return kTile * p.padded_D(); }

void mla_pack_tiles(const MlaProblem& p, const MlaQueries& q) {
  for (int64_t i = 0; i < q.count; ++i) {
    bool is_ordinary = is_for_tiles(p);
    float* packed = q.packed + i * q.padded_heads() * p.padded_D();
    const auto* rows = static_cast<const uint16_t*>(p.q) + q.q_offset + i * p.stride_qt;
    for (int64_t first = 0; is_ordinary && first < q.num_heads; first += kTile)
      is_ordinary = rows_to_tiles(
          [&](int64_t h) { return first + h < q.num_heads ? rows + (first + h) * p.stride_qh : nullptr; },
          p.D(), packed + first / kTile * packed_tiles_floats(p));
    if (!is_ordinary) mla_pack_query(p, q, i, packed);
    *note_of(p, q, i) = is_ordinary ? 1.f : 0.f;
  }
}

// Makes 32 rows the first operand of scores: where they lie, or a copy. Sees columns beyond those of values.
class MlaKeyTile {
 public:
  MlaKeyTile(const MlaProblem& p, const uint8_t* const* rows, float* copy, Ordinary& ordinary)
      : rows_(rows), copy_(copy), ordinary_(&ordinary), D_(p.D()), values_(p.padded_latent()) {
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
  const uint8_t* const* rows_;
  float* copy_;
  Ordinary* ordinary_;
  int64_t D_, values_, column_ = 0;
  bool are_tiles_;
};

// Makes 32 columns of some rows the second operand of values. Sees them, and fetches lines of the next tile.
class MlaPairs {
 public:
  MlaPairs(const MlaProblem& p, const uint8_t* const* rows, int64_t count, int64_t column, float* pairs,
           Ordinary& ordinary, MlaPrefetcher& next)
      : rows_(rows),
        end_(rows + count),
        pairs_(pairs),
        column_(column),
        ordinary_(&ordinary),
        next_(&next),
        live_(tile_columns(p.D() - column)) {}

  // 32 rows.
  MOELA_INLINE void step() {
    if (rows_ == end_) return;
    // Copies of members, which stores to memory would make it load again.
    const auto *rows = rows_, *end = rows_ + kTileColumns;
    const int64_t column = column_;
    const __mmask32 live = live_;
    float* pairs = pairs_;
    Ordinary ordinary = *ordinary_;
    MlaPrefetcher next = *next_;
    for (; rows != end; rows += 4) {
#pragma GCC unroll 2
      for (int t = 0; t < 4; t += 2, pairs += kTile) {
        const I x = load_columns(rows[t], column, live), y = load_columns(rows[t + 1], column, live);
        ordinary.see(x);
        ordinary.see(y);
        store_pairs(x, y, 0, kMlaPairBlock, pairs);
      }
      next.step();
    }
    *ordinary_ = ordinary;
    *next_ = next;
    rows_ = rows;
    pairs_ = pairs;
  }
  void finish() {
    while (rows_ != end_) step();
  }

 private:
  const uint8_t *const *rows_, *const *end_;
  float* pairs_;
  int64_t column_;
  Ordinary* ordinary_;
  MlaPrefetcher* next_;
  __mmask32 live_;
};

// scores[32 keys][rows] = keys @ q.
inline void scores_of_tile(const MlaProblem& p, const float* packed, int64_t rows, const TileOperand& keys,
                           float* scores, MlaKeyTile& beside) {
  for_pairs_of_tiles(rows / kTile, [&](int64_t tile, auto cols) {
    const TileOperand of_rows = whole_tiles(packed + tile * packed_tiles_floats(p), packed_tiles_floats(p));
    multiply_tiles<2, cols>(keys, of_rows, mla_tile_steps(p), scores + tile * kTile, rows, beside);
  });
}

// sums[row][ld] = sums * rescale + weights @ values.
inline void values_of_tiles(const MlaProblem& p, const uint8_t* const* keys, int64_t rows, int64_t tiles,
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
  Ordinary ordinary;
  const Tiles registers;
  for (int64_t key = first; key < end; key += kMlaTileKeys) {
    const int64_t left = end - key, count = left < kMlaTileKeys ? left : kMlaTileKeys;
    const int64_t tiles = (count + kTileColumns - 1) / kTileColumns;
    std::swap(keys, next);
    locate(key + count, next);
    MlaPrefetcher prefetcher(next, kMlaTileKeys, mla_row_bytes(p.cache));
    const auto tile_of = [&](int64_t tile) {
      return MlaKeyTile(p, keys + tile * kTileColumns, scratch.keys[tile % 2], ordinary);
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
    values_of_tiles(p, keys, rows, tiles, scratch, sums.values, ordinary, prefetcher);
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

constexpr moela::cpu::MlaKernels kMlaTileKernels = {kMlaTileRows, mla_tile_scratch_floats, mla_pack_tiles,
                                                    mla_attend_tiles, mla_merge};

}  // namespace
