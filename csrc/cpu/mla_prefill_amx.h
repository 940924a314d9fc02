// mla_prefill in the tiles of AMX, for bfloat16. Bound: the softmax. Included by isa_amx_bf16.cpp only.
//
// As mla_prefill_kernel.h: tiles of 192 queries and 192 keys; scores and weights [key][query].
//
// Numerics of one query: scores are products of amx_tile.h over the columns; weights are rounded to bfloat16,
// their sum is not; weighted values are products over the keys of a tile. What a query does not see is zero,
// and adds nothing. A query that has numbers which are not ordinary (amx_attend.h), or sees some, takes the
// float32 kernel, so bits depend on a query and what it sees only.
#pragma once

#include "cpu/amx_softmax.h"
#include "cpu/mla_prefill_kernel.h"

namespace {

using moela::cpu::MlaPrefillParams;

constexpr int64_t kPrefillQueries = 192;  // twice the float32 kernel's, as each tile reads all keys before it
constexpr int64_t kPrefillTileKeys = 192;
constexpr int64_t kPrefillPairBlock = pair_block_floats(kPrefillTileKeys / 2);
static_assert(kPrefillQueries % kTileColumns == 0, "queries come in pairs of tiles");

inline int64_t prefill_steps(const PrefillProblem& p) { return p.padded_D() / kTileColumns; }

// What a tile of queries uses while it runs: mla_prefill_tile_scratch_floats.
struct PrefillTileScratch {
  PrefillTileScratch(const PrefillProblem& p, float* memory)
      : queries(memory),
        keys(queries + kPrefillQueries / kTile * prefill_steps(p) * kTileFloats),
        pairs(keys + 2 * prefill_steps(p) * kTileFloats),
        scores(pairs + p.padded_Dv() / kTile * kPrefillPairBlock),
        weights(scores + kPrefillTileKeys * kPrefillQueries),
        products(weights + kPrefillTileKeys / 2 * kPrefillQueries),
        sums(products + 4 * kTileFloats),
        softmax{sums + kPrefillQueries * p.padded_Dv(), sums + kPrefillQueries * (p.padded_Dv() + 1),
                sums + kPrefillQueries * (p.padded_Dv() + 2)} {}
  float* queries;   // [query / 16][column / 32], tiles
  float* keys;      // [column / 32][32 keys][16 words]
  float* pairs;     // as in amx_attend.h
  float* scores;    // [key][kPrefillQueries]
  float* weights;   // [query / 16][key / 32], tiles
  float* products;  // [32][32]
  float* sums;      // [query][padded_Dv]
  PrefillSoftmax softmax;
};

int64_t mla_prefill_tile_scratch_floats(const PrefillProblem& p) {
  const int64_t of_columns = prefill_steps(p) * (kPrefillQueries / kTile + 2) * kTileFloats +
                             p.padded_Dv() / kTile * kPrefillPairBlock + kPrefillQueries * p.padded_Dv();
  const int64_t in_tiles = of_columns + (kPrefillTileKeys * 3 / 2 + 3) * kPrefillQueries + 4 * kTileFloats,
                in_float32 = mla_prefill_scratch_floats(p);
  return in_tiles > in_float32 ? in_tiles : in_float32;
}

inline const uint16_t* row_of(const moela::cpu::HeadRows& rows, int64_t token, int64_t head) {
  return static_cast<const uint16_t*>(rows.data) + rows.at(token, head);
}

// Thirty-two keys from token `first` on, zeros from `count` on, to `keys`, their values to `pairs`. Returns
// how many are ordinary before the first that is not.
inline int64_t load_tile(const PrefillProblem& p, int64_t first, int64_t head, int64_t count, float* keys,
                         float* pairs) {
  Ordinary ordinary;
  // visit(k, load) for each 32 columns, load(t) of row t; of a whole tile without a choice for each row.
  const auto for_columns = [&](const moela::cpu::HeadRows& rows, int64_t columns, const auto& visit) {
    const uint16_t* from = row_of(rows, first, head);
    for (int64_t k = 0; k < columns; k += kTileColumns) {
      const __mmask32 live = tile_columns(columns - k);
      const auto load = [&](int64_t t) {
        const I x = load_columns(from + t * rows.stride_t, k, live);
        ordinary.see(x);
        return x;
      };
      if (count == kTileColumns)
        visit(k, load);
      else
        visit(k, [&](int64_t t) { return t < count ? load(t) : zero_bytes(); });
    }
  };
  for_columns(p.k, p.D, [&](int64_t, const auto& load) {
    for (int64_t t = 0; t < kTileColumns; ++t, keys += kTile) _mm512_storeu_si512(keys, load(t));
  });
  for_columns(p.v, p.Dv, [&](int64_t k, const auto& load) {
    for (int64_t t = 0; t < kTileColumns; t += 2) {
      const I even = load(t), odd = load(t + 1);
      store_pairs(even, odd, k, kPrefillPairBlock, pairs + t / 2 * kTile);
    }
  });
  if (ordinary.all()) return count;
  int64_t t = 0;
  while (is_ordinary(row_of(p.k, first + t, head), p.D) && is_ordinary(row_of(p.v, first + t, head), p.Dv))
    ++t;
  return t;
}

// scores[32 keys][query] = keys @ queries.T; those of which no query of a pair of tiles sees a key stay.
inline void scores_of_tile(const PrefillProblem& p, const float* keys, const float* queries,
                           int64_t num_queries, int64_t seen, float* scores) {
  const int64_t steps = prefill_steps(p);
  const TileOperand of_keys = {.words = keys, .row = kTile, .second = kTileFloats, .step = 2 * kTileFloats};
  for (int64_t i = 0; i < num_queries; i += kTileColumns)
    if (seen + i + kTileColumns - 1 > 0)
      multiply_tiles<2, 2>(of_keys,
                           whole_tiles(queries + i / kTile * steps * kTileFloats, steps * kTileFloats), steps,
                           scores + i, kPrefillQueries);
}

// sums[query] = sums * rescale + weights @ values.
inline void values_of_tiles(const PrefillTileScratch& scratch, int64_t num_queries, int64_t keys,
                            int64_t seen, int64_t tiles, int64_t ld) {
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    const TileOperand values =
        whole_tiles(scratch.pairs + column / kTile * kPrefillPairBlock, kPrefillPairBlock);
    for (int64_t i = 0; i < num_queries; i += kTileColumns) {
      const int64_t most = seen + i + kTileColumns - 1, own = most < 0 ? 0 : most > keys ? keys : most;
      const TileOperand weights =
          whole_tiles(scratch.weights + i / kTile * tiles * kTileFloats, tiles * kTileFloats);
      multiply_tiles<2, 2>(weights, values, (own + kTileColumns - 1) / kTileColumns, scratch.products,
                           kTileColumns);
      add_products(scratch.products, kTileColumns, scratch.softmax.rescale + i,
                   scratch.sums + i * ld + column, ld);
    }
  }
}

// Queries [from, to) of a tile by the float32 kernel.
void mla_prefill_float32(const MlaPrefillParams& params, const PrefillTile& tile, int64_t from, int64_t to,
                         float* memory) {
  for (; from < to; from += kPrefillRows)
    mla_prefill(params,
                {.sequence = tile.sequence,
                 .head = tile.head,
                 .first = tile.first + from,
                 .count = to - from < kPrefillRows ? to - from : kPrefillRows},
                memory);
}

void mla_prefill_in_tiles(const MlaPrefillParams& params, const PrefillTile& tile, float* memory) {
  const PrefillProblem& p = params.problem;
  if (p.dtype != Dtype::kBFloat16) return mla_prefill_float32(params, tile, 0, tile.count, memory);
  [[maybe_unused]] const ExactSubnormals guard;
  const PrefillTileScratch scratch(p, memory);
  const PrefillSoftmax& softmax = scratch.softmax;
  const int64_t ld = p.padded_Dv(), head = tile.head;
  const int64_t padded = (tile.count + kTileColumns - 1) / kTileColumns * kTileColumns;
  const auto query = [&](int64_t i) {
    return i < tile.count ? row_of(p.q, tile.sequence.query + tile.first + i, head) : nullptr;
  };
  bool is_odd[kPrefillQueries] = {};  // has numbers that are not ordinary
  for (int64_t i = 0; i < padded; i += kTile)
    if (!rows_to_tiles([&](int64_t row) { return query(i + row); }, p.D,
                       scratch.queries + i / kTile * prefill_steps(p) * kTileFloats))
      for (int64_t row = i; row < i + kTile && row < tile.count; ++row)
        is_odd[row] = !is_ordinary(query(row), p.D);
  init_prefill(softmax, kPrefillQueries, scratch.sums, ld);

  int64_t num_keys = tile.num_keys(p.causal);
  {
    const Tiles registers;
    for (int64_t key = 0; key < num_keys; key += kPrefillTileKeys) {
      const int64_t seen = tile.seen(p.causal) - key;
      int64_t keys = num_keys - key < kPrefillTileKeys ? num_keys - key : kPrefillTileKeys;
      for (int64_t t = 0; t < keys; t += kTileColumns) {
        float* pairs = scratch.pairs + t / 2 * kTile;
        const int64_t token = tile.sequence.key + key + t;
        const int64_t count = keys - t < kTileColumns ? keys - t : kTileColumns;
        const int64_t ordinary = load_tile(p, token, head, count, scratch.keys, pairs);
        if (ordinary < count) {  // the keys from there on are those of the float32 kernel
          keys = t + ordinary;
          num_keys = key + keys;
          load_tile(p, token, head, ordinary, scratch.keys, pairs);
        }
        scores_of_tile(p, scratch.keys, scratch.queries, padded, seen - t,
                       scratch.scores + t * kPrefillQueries);
      }
      const int64_t tiles = (keys + kTileColumns - 1) / kTileColumns;
      for (int64_t i = 0; i < padded; i += kTile)
        softmax_to_tiles({.max = softmax.max + i, .sum = softmax.sum + i, .rescale = softmax.rescale + i},
                         p.sm_scale, scratch.scores + i, kPrefillQueries, keys, seen + i, tiles,
                         scratch.weights + i / kTile * tiles * kTileFloats);
      values_of_tiles(scratch, padded, keys, seen, tiles, ld);
    }
  }
  float* end = scratch.sums + padded * ld;
  for (float* x = scratch.sums; x < end; x += kTileColumns) in_order(x, set1(1 / kWeightFactor), x);
  store_prefill(params, tile, softmax, scratch.sums, ld);

  // Of query i: whether it sees a key that the tiles did not.
  const auto is_left = [&](int64_t i) {
    const int64_t own = tile.seen(p.causal) + i;
    return is_odd[i] || (own < tile.sequence.num_keys ? own : tile.sequence.num_keys) > num_keys;
  };
  for (int64_t i = 0, next; i < tile.count; i = next) {
    for (next = i + 1; next < tile.count && is_left(next) == is_left(i);) ++next;
    if (is_left(i)) mla_prefill_float32(params, tile, i, next, memory);
  }
}

constexpr moela::cpu::MlaPrefillKernel kMlaPrefillTileKernel = {
    kPrefillQueries, mla_prefill_tile_scratch_floats, mla_prefill_in_tiles};

}  // namespace
