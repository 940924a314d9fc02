// mla_prefill_backward in the tiles of AMX, for bfloat16: one head of a sequence. Bound: five products, beside
// the softmax. Included by isa_amx_bf16.cpp only.
//
// As mla_prefill_backward_kernel.h, with tiles of 192 queries and 192 keys. Scores, and the gradients of
// weights, are products [32 keys][32 queries]. They become weights and gradients of scores, the first operand
// of dv and dk as they are, and of dq transposed; the second are pairs of rows of dout, q and k.
//
// Numerics: these products are those of amx_tile.h over the columns; weights and gradients of scores are
// rounded to bfloat16. Products for dk and dv over the queries of a tile, for dq over its keys, are added in
// order.
//
// Tiles multiply ordinary numbers (amx_attend.h) only. Small gradients, whose largest number is less than 1, are
// times a power of two that takes it there, and weights are times 2^50: what is lost below 2^-126 of a sum was
// below 2^-126 of an ordinary number (TINY in python/moela/ops/_mla_prefill_bound.py). Rows with other numbers
// are zeros here; rows of results that depend on them, or that come out infinite or NaN, are those of the
// float32 kernel. So which it is depends on what a row depends on, and on the largest gradient of the head.
#pragma once

#include "cpu/mla_prefill_amx.h"
#include "cpu/mla_prefill_backward_kernel.h"

namespace {

// What one run uses of a head: mla_prefill_backward_tile_scratch_floats.
struct BackwardScratch {
  BackwardScratch(const PrefillProblem& p, int64_t num_queries, int64_t num_keys, float* memory) {
    const int64_t D = p.padded_D(), Dv = p.padded_Dv();
    const int64_t key_tiles = (num_keys + kPrefillTileKeys - 1) / kPrefillTileKeys;
    const int64_t all_keys = key_tiles * kPrefillTileKeys;
    const auto take = [&](int64_t count) {
      floats += count;
      return reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(memory) + (floats - count) * sizeof(float));
    };
    const auto take_flags = [&](int64_t count) {
      return reinterpret_cast<bool*>(take((count + 63) / 64 * kTile));
    };
    left_dq = take_flags(num_queries);
    left_dk = take_flags(num_keys);
    left_dv = take_flags(num_keys);
    of_float32 = take(0);
    queries = take(kPrefillQueries * D / 2);
    query_pairs = take(D / kTile * kPrefillPairBlock);
    dout_rows = take(kTile * Dv / 2);
    dout = take(kPrefillQueries * Dv / 2);
    dout_pairs = take(Dv / kTile * kPrefillPairBlock);
    keys = take(all_keys * D / 2);
    key_pairs = take(key_tiles * D / kTile * kPrefillPairBlock);
    values = take(all_keys * Dv / 2);
    scores = take(4 * kTileFloats);
    gradients = take(4 * kTileFloats);
    weights = take(kPrefillQueries * kTile);
    of_scores = take(kPrefillQueries * kTile);
    of_scores_tiles = take(kPrefillQueries * kPrefillTileKeys / 2);
    products = take(4 * kTileFloats);
    lse = take(kPrefillQueries);
    delta = take(kPrefillQueries);
    dq = take(kPrefillQueries * D);
    dk = take(all_keys * D);
    dv = take(all_keys * Dv);
  }
  // [row]: which rows are left to the float32 kernel. First of left_dq those that are not ordinary in q or dout,
  // of left_dk in k or v, of left_dv in k.
  bool *left_dq, *left_dk, *left_dv;
  float* of_float32;           // what that kernel uses, when the rest is done with
  float* queries;              // [query / 16][column / 32], tiles
  float* query_pairs;          // as in amx_attend.h
  float *dout, *dout_pairs;    // as those of queries, times the power of two
  float* dout_rows;            // [16 queries][padded_Dv] in bfloat16, likewise
  float *keys, *values;        // [key / 32][column / 32][32 keys][16 words]
  float* key_pairs;            // as in amx_attend.h, one tile of keys after the other
  float *scores, *gradients;   // [32 keys][32 queries]
  float *weights, *of_scores;  // [query / 32][32 keys][16 words]
  float* of_scores_tiles;      // [query / 16][key / 32], tiles
  float* products;             // [32][32]
  float *lse, *delta;          // [query]; delta times the power of two and sm_scale
  float *dq, *dk, *dv;         // [row][padded_D or padded_Dv], sums
  int64_t floats = 0;
};

// What a head's rows are found by.
struct BackwardHead {
  const MlaPrefillBackwardParams& params;
  const PrefillSequence& sequence;
  int64_t head;

  const uint16_t* query(int64_t i) const { return row_of(params.problem.q, sequence.query + i, head); }
  const uint16_t* dout(int64_t i) const { return row_of(params.dout, sequence.query + i, head); }
  const uint16_t* key(int64_t t) const { return row_of(params.problem.k, sequence.key + t, head); }
  const uint16_t* value(int64_t t) const { return row_of(params.problem.v, sequence.key + t, head); }
};

// The exponent of the power of two that takes the largest finite gradient of queries [from, to) to [1, 2), not
// negative.
inline int gradient_exponent(const BackwardHead& h, int64_t from, int64_t to) {
  const I infinite = _mm512_set1_epi16(static_cast<int16_t>(0xFF00));  // times two, as the magnitudes
  I largest = zero_bytes();
  for (int64_t i = from; i < to; ++i)
    for (int64_t k = 0; k < h.params.problem.Dv; k += kTileColumns) {
      const I x = load_columns(h.dout(i), k, tile_columns(h.params.problem.Dv - k));
      const I magnitude = _mm512_add_epi16(x, x);
      largest = _mm512_mask_max_epu16(largest, _mm512_cmplt_epu16_mask(magnitude, infinite), largest, magnitude);
    }
  alignas(64) uint16_t lanes[kTileColumns];
  _mm512_store_si512(lanes, largest);
  int most = 0;
  for (const uint16_t lane : lanes) most = lane >> 8 > most ? lane >> 8 : most;
  constexpr int kMost = 126 - kOrdinaryExponent;  // so that the least ordinary number is no subnormal one
  const int exponent = 127 - most;
  return exponent < 0 ? 0 : exponent > kMost ? kMost : exponent;
}

// Two rows after the other, of which row(i) is null where there is none, as pairs.
template <class Row>
inline void rows_to_pairs(const Row& row, int64_t rows, int64_t columns, float* pairs) {
  for (int64_t i = 0; i < rows; i += 2, pairs += kTile)
    for (int64_t k = 0; k < columns; k += kTileColumns) {
      const auto load = [&](const uint16_t* from) {
        return from == nullptr ? zero_bytes() : load_columns(from, k, tile_columns(columns - k));
      };
      store_pairs(load(row(i)), load(row(i + 1)), k, kPrefillPairBlock, pairs);
    }
}

// Thirty-two rows, of which row(i) is null where there is none, as [column / 32][32 rows][16 words].
template <class Row>
inline void copy_rows(const Row& row, int64_t columns, float* to) {
  for (int64_t k = 0; k < columns; k += kTileColumns)
    for (int64_t i = 0; i < kTileColumns; ++i, to += kTile) {
      const uint16_t* from = row(i);
      _mm512_storeu_si512(
          to, from == nullptr ? zero_bytes() : load_columns(from, k, tile_columns(columns - k)));
    }
}

// The keys and values of the head, zeros where they are not ordinary. Returns the first of these.
inline int64_t load_keys(const BackwardHead& h, const BackwardScratch& scratch) {
  const PrefillProblem& p = h.params.problem;
  const int64_t D = p.padded_D(), Dv = p.padded_Dv(), num_keys = h.sequence.num_keys;
  int64_t odd = num_keys;
  for (int64_t first = 0; first < num_keys; first += kTileColumns) {
    const int64_t end = num_keys < first + kTileColumns ? num_keys : first + kTileColumns;
    for (int64_t t = first; t < end; ++t) {
      scratch.left_dv[t] = !is_ordinary(h.key(t), p.D);
      scratch.left_dk[t] = scratch.left_dv[t] || !is_ordinary(h.value(t), p.Dv);
      if (scratch.left_dk[t] && t < odd) odd = t;
    }
    const auto key = [&](int64_t t) {
      return first + t < end && !scratch.left_dv[first + t] ? h.key(first + t) : nullptr;
    };
    const auto value = [&](int64_t t) {
      return first + t < end && !scratch.left_dk[first + t] ? h.value(first + t) : nullptr;
    };
    copy_rows(key, p.D, scratch.keys + first * D / 2);
    copy_rows(value, p.Dv, scratch.values + first * Dv / 2);
    rows_to_pairs(key, kTileColumns, p.D,
                  scratch.key_pairs + first / kPrefillTileKeys * (D / kTile * kPrefillPairBlock) +
                      first % kPrefillTileKeys / 2 * kTile);
  }
  return odd;
}

// Sixteen queries and gradients, zeros where there are none or they are not ordinary.
inline void load_queries(const BackwardHead& h, const PrefillTile& tile, int64_t first, int exponent,
                         const BackwardScratch& scratch) {
  const PrefillProblem& p = h.params.problem;
  const int64_t D = p.padded_D(), Dv = p.padded_Dv();
  const I more = _mm512_set1_epi16(static_cast<int16_t>(exponent << 7)), magnitude = _mm512_set1_epi16(0x7FFF);
  const uint16_t *queries[kTile] = {}, *dout[kTile] = {};
  for (int64_t i = 0; i < kTile; ++i) {
    const bool is_query = first + i < tile.count;
    const int64_t query = tile.first + first + i, token = tile.sequence.query + query;
    scratch.lse[first + i] = is_query ? value_of(h.params.lse, token, h.head) : 0.f;
    scratch.delta[first + i] =
        is_query ? delta_of(h.params, token, h.head) * float_of((127 + exponent) << 23) * p.sm_scale : 0.f;
    if (!is_query) continue;
    scratch.left_dq[query] =
        !is_ordinary(h.query(query), p.D) || !is_ordinary(h.dout(query), p.Dv, exponent);
    if (scratch.left_dq[query]) continue;
    auto* scaled = reinterpret_cast<uint16_t*>(scratch.dout_rows) + i * Dv;
    for (int64_t k = 0; k < Dv; k += kTileColumns) {
      const I x = load_columns(h.dout(query), k, tile_columns(p.Dv - k));
      _mm512_storeu_si512(scaled + k, _mm512_mask_add_epi16(x, _mm512_test_epi16_mask(x, magnitude), x, more));
    }
    queries[i] = h.query(query);
    dout[i] = scaled;
  }
  const auto to_operands = [&](const uint16_t* const* rows, int64_t columns, float* tiles, float* pairs) {
    const auto row = [&](int64_t i) { return rows[i]; };
    rows_to_tiles(row, columns, tiles);
    rows_to_pairs(row, kTile, columns, pairs + first / 2 * kTile);
  };
  to_operands(queries, p.D, scratch.queries + first * D / 2, scratch.query_pairs);
  to_operands(dout, p.Dv, scratch.dout + first * Dv / 2, scratch.dout_pairs);
}

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
      _mm512_storeu_si512(scratch.of_scores_tiles + (query / kTile * tiles + tile) * kTileFloats +
                              query % kTile * kTile,
                          rows[j]);
    }
  }
}

// sums[32 rows][ld] += left @ pairs.
inline void add_weighted(TileOperand left, const float* pairs, int64_t steps, float* products, float* sums,
                         int64_t ld) {
  for (int64_t column = 0; column < ld; column += kTileColumns) {
    multiply_tiles<2, 2>(left, whole_tiles(pairs + column / kTile * kPrefillPairBlock, kPrefillPairBlock),
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
  const auto left = [](const float* words, int64_t row_step) {
    return TileOperand{.words = words, .row = kTile, .second = kTileFloats, .step = row_step};
  };
  for (int64_t t = 0; t < keys; t += kTileColumns) {
    const int64_t from = first_that_sees(t, seen, queries) / kTileColumns * kTileColumns;
    for (int64_t i = from; i < queries; i += kTileColumns) {
      multiply_tiles<2, 2>(left(scratch.keys + (key + t) * D / 2, 2 * kTileFloats),
                           whole_tiles(scratch.queries + i * D / 2, D / 2 * kTile), D / kTileColumns,
                           scratch.scores, kTileColumns);
      multiply_tiles<2, 2>(left(scratch.values + (key + t) * Dv / 2, 2 * kTileFloats),
                           whole_tiles(scratch.dout + i * Dv / 2, Dv / 2 * kTile), Dv / kTileColumns,
                           scratch.gradients, kTileColumns);
      weights_to_tiles(scratch, p.sm_scale, i, keys - t, seen - t + i, t / kTileColumns, tiles);
    }
    const int64_t steps = (queries - from) / kTileColumns, pair = from / 2 * kTile;
    add_weighted(left(scratch.weights + from * kTile, 2 * kTileFloats), scratch.dout_pairs + pair, steps,
                 scratch.products, scratch.dv + (key + t) * Dv, Dv);
    add_weighted(left(scratch.of_scores + from * kTile, 2 * kTileFloats), scratch.query_pairs + pair, steps,
                 scratch.products, scratch.dk + (key + t) * D, D);
  }
  for (int64_t i = 0; i < queries; i += kTileColumns) {
    const int64_t most = seen + i + kTileColumns - 1, own = most < 0 ? 0 : most < keys ? most : keys;
    add_weighted(whole_tiles(scratch.of_scores_tiles + i / kTile * tiles * kTileFloats, tiles * kTileFloats),
                 key_pairs, (own + kTileColumns - 1) / kTileColumns, scratch.products,
                 scratch.dq + i * D, D);
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
    for (int64_t i = 0; i < kPrefillQueries; i += kTile) load_queries(h, tile, i, exponent, scratch);
    std::memset(scratch.dq, 0, kPrefillQueries * D * sizeof(float));
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
  const BackwardScratch scratch(p, num_queries, num_keys, nullptr);
  const int64_t flags = scratch.of_float32 - static_cast<float*>(nullptr);
  const int64_t in_float32 = flags + mla_prefill_backward_scratch_floats(p, num_queries, num_keys);
  return scratch.floats > in_float32 ? scratch.floats : in_float32;
}

constexpr moela::cpu::MlaPrefillBackwardKernel kMlaPrefillBackwardTileKernel = {
    mla_prefill_backward_tile_scratch_floats, mla_prefill_backward_in_tiles};

}  // namespace
