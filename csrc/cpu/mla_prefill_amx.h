// mla_prefill in the tiles of AMX, for bfloat16. Bound: the softmax. Included by isa_amx_bf16.cpp only.
//
// As mla_prefill_kernel.h: tiles of 192 queries and 192 keys; scores and weights [key][query]. Keys and
// values are blocks of mla_prefill_operands.h, those of a head made once for all its tiles where it has
// several. For 32 queries after the other, scores become weights, and these weighted values, while they are
// in L1.
//
// Numerics of one query: scores are products of amx_tile.h over the columns; weights are rounded to bfloat16,
// their sum is not; weighted values are products over the keys of a tile. What a query does not see is zero,
// and adds nothing. A query that has numbers which are not ordinary (amx_attend.h), or sees some, takes the
// float32 kernel, so bits depend on a query and what it sees only.
#pragma once

#include "cpu/amx_softmax.h"
#include "cpu/mla_prefill_kernel.h"
#include "cpu/mla_prefill_operands.h"

namespace {

using moela::cpu::MlaPrefillParams;

constexpr int64_t kPrefillQueries = 192;  // twice the float32 kernel's, as each tile reads all keys before it
static_assert(kPrefillQueries % kTileColumns == 0, "queries come in pairs of tiles");

inline int64_t prefill_steps(const PrefillProblem& p) { return p.padded_D() / kTileColumns; }

// What a tile of queries uses while it runs: mla_prefill_tile_scratch_floats.
struct PrefillTileScratch {
  PrefillTileScratch(const PrefillProblem& p, float* memory)
      : queries(memory),
        block(queries + kPrefillQueries * p.padded_D() / 2),
        scores(block + PrefillBlock(p).floats),
        weights(scores + kPrefillTileKeys * kTileColumns),
        products(weights + kPrefillTileKeys * kTile),
        sums(products + 4 * kTileFloats),
        softmax{sums + kPrefillQueries * p.padded_Dv(), sums + kPrefillQueries * (p.padded_Dv() + 1),
                sums + kPrefillQueries * (p.padded_Dv() + 2)} {}
  float* queries;   // [query / 16][column / 32], tiles
  float* block;     // PrefillBlock, where the tile has to make it
  float* scores;    // [key][32 queries]
  float* weights;   // [2][key / 32], tiles
  float* products;  // [32][32]
  float* sums;      // [query][padded_Dv]
  PrefillSoftmax softmax;
};

int64_t mla_prefill_tile_scratch_floats(const PrefillProblem& p) {
  const int64_t in_tiles = kPrefillQueries * (p.padded_D() / 2 + p.padded_Dv() + 3) + PrefillBlock(p).floats +
                           kPrefillTileKeys * (kTileColumns + kTile) + 4 * kTileFloats,
                in_float32 = mla_prefill_scratch_floats(p);
  return in_tiles > in_float32 ? in_tiles : in_float32;
}

// Queries [i, i + 32) of a tile and so many keys of a block, of which the first query of the tile sees
// `seen`, and each one more.
inline void attend_block(const PrefillProblem& p, const float* block, const PrefillTileScratch& scratch,
                         int64_t i, int64_t keys, int64_t seen) {
  const PrefillBlock at(p);
  const int64_t D = p.padded_D(), ld = p.padded_Dv(), tiles = (keys + kTileColumns - 1) / kTileColumns;
  const int64_t most = seen + i + kTileColumns - 1, own = most < 0 ? 0 : most > keys ? keys : most;
  const TileOperand queries = whole_tiles(scratch.queries + i * D / 2, D / 2 * kTile);
  for (int64_t t = 0; t < own; t += kTileColumns)
    multiply_tiles<2, 2>(
        {.words = block + at.keys + t * D / 2, .row = kTile, .second = kTileFloats, .step = 2 * kTileFloats},
        queries, D / kTileColumns, scratch.scores + t * kTileColumns, kTileColumns);
  const PrefillSoftmax& softmax = scratch.softmax;
  for (int64_t j = 0; j < kTileColumns; j += kTile)
    softmax_to_tiles(
        {.max = softmax.max + i + j, .sum = softmax.sum + i + j, .rescale = softmax.rescale + i + j},
        p.sm_scale, scratch.scores + j, kTileColumns, keys, seen + i + j, tiles,
        scratch.weights + j / kTile * tiles * kTileFloats);
  const TileOperand weights = whole_tiles(scratch.weights, tiles * kTileFloats);
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    multiply_tiles<2, 2>(
        weights, whole_tiles(block + at.pairs + column / kTile * kPrefillPairBlock, kPrefillPairBlock),
        (own + kTileColumns - 1) / kTileColumns, scratch.products, kTileColumns);
    add_products(scratch.products, kTileColumns, softmax.rescale + i, scratch.sums + i * ld + column, ld);
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
  const PrefillBlock at(p);
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
  init_prefill(softmax, padded, scratch.sums, ld);

  int64_t num_keys = tile.num_keys(p.causal);
  {
    const Tiles registers;
    for (int64_t key = 0; key < num_keys; key += kPrefillTileKeys) {
      int64_t keys = num_keys - key < kPrefillTileKeys ? num_keys - key : kPrefillTileKeys;
      const float* block = scratch.block;
      if (tile.blocks == nullptr)
        load_block(p, tile.sequence, head, key, keys, scratch.block);
      else
        block = tile.blocks + key / kPrefillTileKeys * at.floats;
      const auto ordinary = static_cast<int64_t>(block[at.ordinary]);
      if (ordinary < keys) {  // the keys from there on are those of the float32 kernel
        keys = ordinary;
        num_keys = key + keys;
      }
      for (int64_t i = 0; i < padded; i += kTileColumns)
        attend_block(p, block, scratch, i, keys, tile.seen(p.causal) - key);
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
    kPrefillQueries,          kPrefillTileKeys,       mla_prefill_tile_scratch_floats,
    mla_prefill_block_floats, mla_prefill_load_block, mla_prefill_in_tiles};

}  // namespace
