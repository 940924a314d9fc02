// What mla_prefill_backward_amx.h multiplies, and what it adds to. Included by isa_amx_bf16.cpp only.
#pragma once

#include "cpu/mla_prefill_amx.h"
#include "cpu/mla_prefill_backward_kernel.h"

namespace {

// What a run uses.
struct BackwardScratch {
  BackwardScratch(const PrefillProblem& p, int64_t num_queries, int64_t num_keys, float* memory) {
    const int64_t D = p.padded_D(), Dv = p.padded_Dv();
    const int64_t key_tiles = (num_keys + kPrefillTileKeys - 1) / kPrefillTileKeys;
    const int64_t all_keys = key_tiles * kPrefillTileKeys;
    const auto take = [&](int64_t count) {  // as numbers: memory is null where only floats is asked for
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
    const int64_t in_float32 = floats + mla_prefill_backward_scratch_floats(p, num_queries, num_keys);
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
    floats = floats > in_float32 ? floats : in_float32;
  }
  // [row]: which rows of the results are left to the float32 kernel. Before they are stored: of left_dq those
  // that are not ordinary in q or dout, of left_dk in k or v, of left_dv in k.
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

// The rows of a sequence and head.
struct BackwardHead {
  const MlaPrefillBackwardParams& params;
  const PrefillSequence& sequence;
  int64_t head;

  const uint16_t* query(int64_t i) const { return row_of(params.problem.q, sequence.query + i, head); }
  const uint16_t* dout(int64_t i) const { return row_of(params.dout, sequence.query + i, head); }
  const uint16_t* key(int64_t t) const { return row_of(params.problem.k, sequence.key + t, head); }
  const uint16_t* value(int64_t t) const { return row_of(params.problem.v, sequence.key + t, head); }
};

// The exponent, not negative, of the power of two that takes the largest finite gradient of queries [from,
// to) to [1, 2).
inline int gradient_exponent(const BackwardHead& h, int64_t from, int64_t to) {
  const I infinite = _mm512_set1_epi16(static_cast<int16_t>(0xFF00));  // times two, as the magnitudes
  I largest = zero_bytes();
  for (int64_t i = from; i < to; ++i)
    for (int64_t k = 0; k < h.params.problem.Dv; k += kTileColumns) {
      const I x = load_columns(h.dout(i), k, tile_columns(h.params.problem.Dv - k));
      const I magnitude = _mm512_add_epi16(x, x);
      largest =
          _mm512_mask_max_epu16(largest, _mm512_cmplt_epu16_mask(magnitude, infinite), largest, magnitude);
    }
  alignas(64) uint16_t lanes[kTileColumns];
  _mm512_store_si512(lanes, largest);
  int most = 0;
  for (const uint16_t lane : lanes) most = lane >> 8 > most ? lane >> 8 : most;
  constexpr int kMost = 126 - kOrdinaryExponent;  // the least ordinary number is no subnormal one
  return most >= 127 ? 0 : most <= 127 - kMost ? kMost : 127 - most;
}

// Keys and values, zeros where they are not ordinary. Returns the first key that is not, or whose value is
// not.
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
    // What is not ordinary of a value stays in the pairs of its own row, which dq and dk leave.
    const auto value = [&](int64_t t) { return first + t < end ? h.value(first + t) : nullptr; };
    copy_rows(key, p.D, scratch.keys + first * D / 2);
    copy_rows(value, p.Dv, scratch.values + first * Dv / 2);
    rows_to_pairs(key, kTileColumns, p.D, kPrefillPairBlock,
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
  const I more = _mm512_set1_epi16(static_cast<int16_t>(exponent << 7)),
          magnitude = _mm512_set1_epi16(0x7FFF);
  const uint16_t *queries[kTile] = {}, *dout[kTile] = {};
  for (int64_t i = 0; i < kTile; ++i) {
    const bool is_query = first + i < tile.count;
    const int64_t query = tile.first + first + i, token = tile.sequence.query + query;
    scratch.lse[first + i] = is_query ? value_of(h.params.lse, token, h.head) : 0.f;
    scratch.delta[first + i] =
        is_query ? delta_of(h.params, token, h.head) * float_of((127 + exponent) << 23) * p.sm_scale : 0.f;
    if (!is_query) continue;
    if (first + i + kRowsAhead < tile.count) {
      prefetch_row(h.query(query + kRowsAhead), p.D);
      prefetch_row(h.dout(query + kRowsAhead), p.Dv);
      prefetch_row(row_of(h.params.fwd_out, token + kRowsAhead, h.head), p.Dv);
    }
    scratch.left_dq[query] = !is_ordinary(h.query(query), p.D) || !is_ordinary(h.dout(query), p.Dv, exponent);
    if (scratch.left_dq[query]) continue;
    auto* scaled = reinterpret_cast<uint16_t*>(scratch.dout_rows) + i * Dv;
    for (int64_t k = 0; k < Dv; k += kTileColumns) {
      const I x = load_columns(h.dout(query), k, tile_columns(p.Dv - k));
      _mm512_storeu_si512(scaled + k,
                          _mm512_mask_add_epi16(x, _mm512_test_epi16_mask(x, magnitude), x, more));
    }
    queries[i] = h.query(query);
    dout[i] = scaled;
  }
  const auto to_operands = [&](const uint16_t* const* rows, int64_t columns, float* tiles, float* pairs) {
    const auto row = [&](int64_t i) { return rows[i]; };
    rows_to_tiles(row, columns, tiles);
    rows_to_pairs(row, kTile, columns, kPrefillPairBlock, pairs + first / 2 * kTile);
  };
  to_operands(queries, p.D, scratch.queries + first * D / 2, scratch.query_pairs);
  to_operands(dout, p.Dv, scratch.dout + first * Dv / 2, scratch.dout_pairs);
}

}  // namespace
