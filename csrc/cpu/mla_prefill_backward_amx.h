// mla_prefill_backward in the tiles of AMX, for bfloat16: one head of a sequence. Bound: the tiles, and what
// is copied for them. Included by isa_amx_bf16.cpp only.
//
// As mla_prefill_backward_kernel.h, with tiles of 192 queries and 192 keys. Scores, and the gradients of
// weights, are products [32 keys][32 queries]. They become weights and gradients of scores, the first operand
// of dv and dk as they are, and of dq transposed; the second are pairs of rows of dout, q and k.
//
// Numerics: these products are those of amx_tile.h over the columns; weights and gradients of scores are
// rounded to bfloat16. Products for dk and dv over the queries of a tile, for dq over its keys, are added in
// order.
//
// Tiles multiply ordinary numbers only, as amx_attend.h has it. Small gradients, of which none is 1 or more,
// are times the power of two that takes the largest there, and weights times 2^50. What a sum loses is below
// 2^-126, which is below 2^-176 of a result, whose terms are weights or gradients of scores times 2^-50 or
// more, all of it less that power: as if less than 2^-126 of these were lost (TINY in
// python/moela/ops/_mla_prefill_bound.py).
//
// Rows of pairs that are not ordinary are zeros. Rows of results that depend on them, or that come out
// infinite or NaN, are those of the float32 kernel, so which it is depends on what a row depends on, and on
// the largest gradient of the head.
#pragma once

#include "cpu/mla_prefill_backward_operands.h"

namespace {

// Scores of 32 keys and the 32 queries from i on to weights, gradients of weights to those of scores, tile
// `tile` of so many of of_scores_tiles. Of `keys` keys the first query sees `seen`, and each one more.
inline void weights_to_tiles(const BackwardScratch& scratch, float sm_scale, int64_t i, int64_t keys,
                             int64_t seen, int64_t tile, int64_t tiles) {
  const F scale = set1(sm_scale);
  float* const weights = scratch.weights + i * kTile;
  float* const of_scores = scratch.of_scores + i * kTile;
  alignas(64) float pairs[2][kTileFloats];
  const auto to_rows = [&](int64_t t, const auto& masked) {
    F w[2], ds[2];
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      const int64_t at = t * kTileColumns + n * kTile;
      const F under = _mm512_fmsub_ps(load(scratch.scores + at), scale, load(scratch.lse + i + n * kTile));
      const F weight = exp_nonpositive_of<kWeightExponent>(under);
      const F x = _mm512_fmsub_ps(load(scratch.gradients + at), scale, load(scratch.delta + i + n * kTile));
      w[n] = masked(weight, t, n);
      ds[n] = masked(mul(weight, x), t, n);
    }
    _mm512_storeu_si512(weights + t * kTile, reinterpret_cast<I>(_mm512_cvtne2ps_pbh(w[1], w[0])));
    const I row = reinterpret_cast<I>(_mm512_cvtne2ps_pbh(ds[1], ds[0]));
    _mm512_storeu_si512(of_scores + t * kTile, row);
    return row;
  };
  const auto to_pairs = [&](const auto& masked) {
    for (int64_t t = 0; t < kTileColumns; t += 2) {
      const I even = to_rows(t, masked), odd = to_rows(t + 1, masked);
      _mm512_store_si512(pairs[0] + t / 2 * kTile, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(pairs[1] + t / 2 * kTile, _mm512_unpackhi_epi16(even, odd));
    }
  };
  if (seen >= kTileColumns && keys >= kTileColumns)
    to_pairs([](F x, int64_t, int) { return x; });
  else
    to_pairs([&](F x, int64_t t, int n) {
      const int64_t from = first_that_sees(t, seen, kTileColumns);
      const uint32_t lanes = t < keys && from < kTileColumns ? ~uint32_t{0} << from : 0;
      return _mm512_maskz_mov_ps(static_cast<__mmask16>(lanes >> n * kTile), x);
    });
  // Unpacking leaves queries 0-3, 8-11, 16-19 and 24-27 in the first half.
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    I rows[kTile];
    load_quads(reinterpret_cast<const uint8_t*>(pairs[half]), 64, rows);
#pragma GCC unroll 16
    for (int j = 0; j < kTile; ++j) {
      const int64_t query = i + j / 4 * 8 + half * 4 + j % 4;
      _mm512_storeu_si512(
          scratch.of_scores_tiles + (query / kTile * tiles + tile) * kTileFloats + query % kTile * kTile,
          rows[j]);
    }
  }
}

// sums[32 rows][ld] += weights @ pairs.
inline void add_weighted(TileOperand weights, const float* pairs, int64_t steps, float* products, float* sums,
                         int64_t ld) {
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    multiply_tiles<2, 2>(weights, whole_tiles(pairs + column / kTile * kPrefillPairBlock, kPrefillPairBlock),
                         steps, products, kTileColumns);
    add_products(products, kTileColumns, sums + column, ld);
  }
}

// A tile of queries and a tile of keys, `key` and so many after it.
inline void add_gradients(const BackwardHead& h, const PrefillTile& tile, int64_t key, int64_t keys,
                          const BackwardScratch& scratch) {
  const PrefillProblem& p = h.params.problem;
  const int64_t D = p.padded_D(), Dv = p.padded_Dv(), seen = tile.seen(p.causal) - key;
  const int64_t queries = (tile.count + kTileColumns - 1) / kTileColumns * kTileColumns;
  const int64_t tiles = (keys + kTileColumns - 1) / kTileColumns;
  const float* key_pairs = scratch.key_pairs + key / kPrefillTileKeys * (D / kTile * kPrefillPairBlock);
  const auto of_keys = [](const float* words) {
    return TileOperand{.words = words, .row = kTile, .second = kTileFloats, .step = 2 * kTileFloats};
  };
  for (int64_t t = 0; t < keys; t += kTileColumns) {
    const int64_t from = first_that_sees(t, seen, queries) / kTileColumns * kTileColumns;
    for (int64_t i = from; i < queries; i += kTileColumns) {
      multiply_tiles<2, 2>(of_keys(scratch.keys + (key + t) * D / 2),
                           whole_tiles(scratch.queries + i * D / 2, D / 2 * kTile), D / kTileColumns,
                           scratch.scores, kTileColumns);
      multiply_tiles<2, 2>(of_keys(scratch.values + (key + t) * Dv / 2),
                           whole_tiles(scratch.dout + i * Dv / 2, Dv / 2 * kTile), Dv / kTileColumns,
                           scratch.gradients, kTileColumns);
      weights_to_tiles(scratch, p.sm_scale, i, keys - t, seen - t + i, t / kTileColumns, tiles);
    }
    const int64_t steps = (queries - from) / kTileColumns, pair = from / 2 * kTile;
    add_weighted(of_keys(scratch.weights + from * kTile), scratch.dout_pairs + pair, steps, scratch.products,
                 scratch.dv + (key + t) * Dv, Dv);
    add_weighted(of_keys(scratch.of_scores + from * kTile), scratch.query_pairs + pair, steps,
                 scratch.products, scratch.dk + (key + t) * D, D);
  }
  for (int64_t i = 0; i < queries; i += kTileColumns) {
    const int64_t most = seen + i + kTileColumns - 1, own = most < 0 ? 0 : most < keys ? most : keys;
    add_weighted(whole_tiles(scratch.of_scores_tiles + i / kTile * tiles * kTileFloats, tiles * kTileFloats),
                 key_pairs, (own + kTileColumns - 1) / kTileColumns, scratch.products, scratch.dq + i * D, D);
  }
}

// Stores rows of sums, times factor, but those that are left or are not finite. Returns whether there are.
inline bool store_sums(float* sums, int64_t ld, int64_t count, int64_t columns, float factor,
                       const PrefillProblem& p, int64_t token, int64_t head, bool* is_left, void* to) {
  constexpr int kNotFinite = 0x99;  // NaN and infinity, of both kinds each
  bool is_any_left = false;
  for (int64_t t = 0; t < count; ++t, sums += ld) {
    __mmask16 odd = 0;
    for (int64_t k = 0; k < ld; k += kTileColumns) {
      odd |= _mm512_fpclass_ps_mask(load(sums + k), kNotFinite) |
             _mm512_fpclass_ps_mask(load(sums + k + kTile), kNotFinite);
      in_order(sums + k, set1(factor), sums + k);
    }
    is_left[t] = is_left[t] || odd != 0;
    is_any_left = is_any_left || is_left[t];
    if (!is_left[t]) store_floats(sums, columns, p.dtype, to, ((token + t) * p.H + head) * columns);
  }
  return is_any_left;
}

void mla_prefill_backward_in_tiles(const MlaPrefillBackwardParams& params, const PrefillSequence& sequence,
                                   int64_t head, float* memory) {
  const PrefillProblem& p = params.problem;
  if (p.dtype != Dtype::kBFloat16) return mla_prefill_backward(params, sequence, head, memory);
  [[maybe_unused]] const ExactSubnormals guard;
  const BackwardScratch scratch(p, sequence.num_queries, sequence.num_keys, memory);
  const BackwardHead h = {.params = params, .sequence = sequence, .head = head};
  const int64_t D = p.padded_D(), Dv = p.padded_Dv(), blind = num_blind(p, sequence);
  const auto sees_keys = [&](int64_t query) {
    return PrefillTile{.sequence = sequence, .head = head, .first = query, .count = 1}.num_keys(p.causal);
  };

  const int exponent = gradient_exponent(h, blind, sequence.num_queries);
  const int64_t odd = load_keys(h, scratch);
  std::memset(scratch.dk, 0, sequence.num_keys * D * sizeof(float));
  std::memset(scratch.dv, 0, sequence.num_keys * Dv * sizeof(float));

  const float factor = float_of((127 - kWeightExponent - exponent) << 23);
  store_zeros(blind, p, sequence.query, head, params.dq);
  bool is_any_left = false;
  int64_t reached = 0;  // by queries that are not ordinary: keys before this one
  for (int64_t first = blind; first < sequence.num_queries; first += kPrefillQueries) {
    const int64_t left = sequence.num_queries - first;
    const PrefillTile tile = {.sequence = sequence,
                              .head = head,
                              .first = first,
                              .count = left < kPrefillQueries ? left : kPrefillQueries};
    const int64_t padded = (tile.count + kTileColumns - 1) / kTileColumns * kTileColumns;
    for (int64_t i = 0; i < padded; i += kTile) load_queries(h, tile, i, exponent, scratch);
    std::memset(scratch.dq, 0, padded * D * sizeof(float));
    const int64_t num_keys = tile.num_keys(p.causal);
    {
      const Tiles registers;
      for (int64_t key = 0; key < num_keys; key += kPrefillTileKeys)
        add_gradients(h, tile, key, num_keys - key < kPrefillTileKeys ? num_keys - key : kPrefillTileKeys,
                      scratch);
    }
    for (int64_t i = first; i < first + tile.count; ++i) {
      const int64_t seen = sees_keys(i);
      if (scratch.left_dq[i]) reached = seen;
      scratch.left_dq[i] = scratch.left_dq[i] || seen > odd;
    }
    is_any_left |= store_sums(scratch.dq, D, tile.count, p.D, factor, p, sequence.query + first, head,
                              scratch.left_dq + first, params.dq);
  }
  for (int64_t t = 0; t < reached; ++t) scratch.left_dk[t] = scratch.left_dv[t] = true;
  is_any_left |= store_sums(scratch.dk, D, sequence.num_keys, p.D, factor, p, sequence.key, head,
                            scratch.left_dk, params.dk);
  is_any_left |= store_sums(scratch.dv, Dv, sequence.num_keys, p.Dv, factor, p, sequence.key, head,
                            scratch.left_dv, params.dv);
  if (is_any_left)
    mla_prefill_backward_rows(params, sequence, head, {scratch.left_dq, scratch.left_dk, scratch.left_dv},
                              scratch.of_float32);
}

int64_t mla_prefill_backward_tile_scratch_floats(const PrefillProblem& p, int64_t num_queries,
                                                 int64_t num_keys) {
  return BackwardScratch(p, num_queries, num_keys, nullptr).floats;
}

constexpr moela::cpu::MlaPrefillBackwardKernel kMlaPrefillBackwardTileKernel = {
    mla_prefill_backward_tile_scratch_floats, mla_prefill_backward_in_tiles};

}  // namespace
