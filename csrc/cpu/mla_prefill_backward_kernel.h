// mla_prefill_backward on the CPU: one head of a sequence. Bound: the float32 multiply-add rate.
//
// Tiles of 96 queries are taken in order, and for each the tiles of 96 keys that it sees: scores and weights
// again, the gradient of scores, and three products of it. A head is not divided between threads, so that
// five products do, and sums have one order.
//
// Numerics: as mla_prefill_kernel.h, less the maximum. Chains of dq ascend over the keys of a tile, those of
// dk and dv over its queries; the sums of tiles are added in order.
#pragma once

#include "cpu/mla_prefill_backward.h"
#include "cpu/mla_prefill_kernel.h"

namespace {

using moela::cpu::HeadRows;
using moela::cpu::HeadValues;
using moela::cpu::MlaPrefillBackwardParams;
using moela::cpu::PrefillSequence;

// Of a tile of queries.
struct PrefillGradient {
  float* q;         // [kPrefillRows][D]
  float* q_packed;  // [D][kPrefillRows]
  float* dout;      // [kPrefillRows][Dv]
  float* dout_packed;
  float* dq;     // [kPrefillRows][D], sums
  float* lse;    // [kPrefillRows]
  float* delta;  // [kPrefillRows]: sum of dout * fwd_out, less dlse
};

inline float value_of(const HeadValues& values, int64_t token, int64_t head) {
  return values.data == nullptr ? 0.f : values.data[token * values.stride_t + head * values.stride_h];
}

// Sum of dout * fwd_out, less dlse. Sixteen chains, whose sums are added in order.
inline float delta_of(const MlaPrefillBackwardParams& params, int64_t token, int64_t head) {
  const PrefillProblem& p = params.problem;
  constexpr int64_t kChains = 16;
  alignas(64) float chains[kChains];
  F sums[kChains / kLanes] = {};
  for (int64_t k = 0; k < p.Dv; k += kChains) {
    alignas(64) float dout[kChains] = {}, out[kChains] = {};
    const int64_t n = p.Dv - k < kChains ? p.Dv - k : kChains;
    load_floats(params.dout.data, p.dtype, params.dout.at(token, head) + k, n, dout);
    load_floats(params.fwd_out.data, p.dtype, params.fwd_out.at(token, head) + k, n, out);
    for (int v = 0; v < kChains / kLanes; ++v)
      sums[v] = add(sums[v], mul(load(dout + v * kLanes), load(out + v * kLanes)));
  }
  for (int v = 0; v < kChains / kLanes; ++v) store(chains + v * kLanes, sums[v]);
  float sum = 0.f;
  for (int64_t c = 0; c < kChains; ++c) sum += chains[c];
  return sum - value_of(params.dlse, token, head);
}

// The first queries of a causal sequence with fewer keys, which see none. Their rows are not multiplied by 0,
// as their gradients may be NaN.
inline int64_t num_blind(const PrefillProblem& p, const PrefillSequence& sequence) {
  const int64_t missing = sequence.num_queries - sequence.num_keys;
  return p.causal && missing > 0 ? missing : sequence.num_keys == 0 ? sequence.num_queries : 0;
}

inline void load_gradient(const MlaPrefillBackwardParams& params, const PrefillTile& tile,
                          const PrefillGradient& g) {
  const PrefillProblem& p = params.problem;
  const int64_t token = tile.sequence.query + tile.first, D = p.padded_D(), Dv = p.padded_Dv();
  load_rows(p.q, p.dtype, token, tile.head, tile.count, p.D, g.q, D);
  load_transposed(p.q, p.dtype, token, tile.head, tile.count, p.D, D, g.q_packed);
  load_rows(params.dout, p.dtype, token, tile.head, tile.count, p.Dv, g.dout, Dv);
  load_transposed(params.dout, p.dtype, token, tile.head, tile.count, p.Dv, Dv, g.dout_packed);
  std::memset(g.dq, 0, kPrefillRows * D * sizeof(float));
  for (int64_t i = 0; i < kPrefillRows; ++i) g.lse[i] = g.delta[i] = 0.f;
  for (int64_t i = 0; i < tile.count; ++i) {
    g.lse[i] = value_of(params.lse, token + i, tile.head);
    g.delta[i] = delta_of(params, token + i, tile.head);
  }
}

// Scores to weights, and their gradients to those of scores, both [key][kPrefillRows]; 0 where a query does
// not see the key, and in the rows that fill the last group: these are added to keys that come later. The
// loop over queries is vectorized.
inline void prefill_weights(const PrefillGradient& g, float sm_scale, int64_t keys, int64_t queries,
                            int64_t seen, float* scores, float* gradients) {
  const int64_t rows = (keys + kPrefillGroup - 1) / kPrefillGroup * kPrefillGroup;
  for (int64_t t = 0; t < rows; ++t) {
    float* row = scores + t * kPrefillRows;
    float* of_row = gradients + t * kPrefillRows;
    const int64_t from = t < keys ? first_that_sees(t, seen, queries) : queries;
    for (int64_t i = 0; i < from; ++i) row[i] = of_row[i] = 0.f;
    for (int64_t i = from; i < queries; ++i) {
      const float weight = exp_nonpositive(row[i] * sm_scale - g.lse[i]);
      row[i] = weight;
      of_row[i] = weight * (of_row[i] - g.delta[i]) * sm_scale;
    }
  }
}

// sums[key] += weights @ rows of queries. has_own_chains: as 0 * NaN is NaN, each key gets a chain of its
// own.
inline void add_over_queries(const float* weights, int64_t keys, const float* rows, int64_t ld,
                             int64_t queries, int64_t seen, bool has_own_chains, float* sums) {
  for (int64_t m = 0; m < keys; m += kPrefillGroup) {
    const int64_t from = first_that_sees(m, seen, queries) / 16 * 16;  // OfKey counts in sixteens
    if (!has_own_chains) {
      prefill_product<OfKey>(weights + from, m, kPrefillGroup, rows + from * ld, ld, ld, queries - from, sums,
                             ld, Add{});
      continue;
    }
    for (int64_t t = m; t < m + kPrefillGroup && t < keys; ++t) {
      const int64_t own = first_that_sees(t, seen, queries);
      prefill_product<OfKey, 1>(weights + own, t, 1, rows + own * ld, ld, ld, queries - own, sums, ld, Add{});
    }
  }
}

// Which rows of a sequence and head are stored, nullptr: all.
struct GradientRows {
  const bool *dq, *dk, *dv;
};

void store_rows(const float* rows, int64_t ld, int64_t count, int64_t columns, const PrefillProblem& p,
                int64_t token, int64_t head, const bool* is_wanted, void* to) {
  for (int64_t t = 0; t < count; ++t)
    if (is_wanted == nullptr || is_wanted[t])
      store_floats(rows + t * ld, columns, p.dtype, to, ((token + t) * p.H + head) * columns);
}

void store_zeros(int64_t count, const PrefillProblem& p, int64_t token, int64_t head, void* to) {
  const int64_t row_bytes = p.D * moela::cpu::size_of(p.dtype);
  for (int64_t t = 0; t < count; ++t)
    std::memset(static_cast<uint8_t*>(to) + ((token + t) * p.H + head) * row_bytes, 0, row_bytes);
}

void mla_prefill_backward_rows(const MlaPrefillBackwardParams& params, const PrefillSequence& sequence,
                               int64_t head, const GradientRows& wanted, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  const PrefillProblem& p = params.problem;
  const int64_t D = p.padded_D(), Dv = p.padded_Dv();
  const auto take = [&](int64_t floats) {
    float* taken = scratch;
    scratch += floats;
    return taken;
  };
  const PrefillGradient g = {.q = take(kPrefillRows * D),
                             .q_packed = take(kPrefillRows * D),
                             .dout = take(kPrefillRows * Dv),
                             .dout_packed = take(kPrefillRows * Dv),
                             .dq = take(kPrefillRows * D),
                             .lse = take(kPrefillRows),
                             .delta = take(kPrefillRows)};
  float* keys_rows = take(kPrefillRows * D);
  float* keys_panels = take((kPrefillRows + 1) * D);
  float* values_panels = take((kPrefillRows + 1) * Dv);
  float* scores = take(kPrefillRows * kPrefillRows);
  float* gradients = take(kPrefillRows * kPrefillRows);
  const int64_t all_keys = (sequence.num_keys + kPrefillRows - 1) / kPrefillRows * kPrefillRows;
  float* dk = take(all_keys * D);
  float* dv = take(all_keys * Dv);
  std::memset(dk, 0, all_keys * (D + Dv) * sizeof(float));

  const int64_t blind = num_blind(p, sequence);
  store_zeros(blind, p, sequence.query, head, params.dq);
  for (int64_t first = blind; first < sequence.num_queries; first += kPrefillRows) {
    const int64_t left = sequence.num_queries - first;
    const PrefillTile tile = {.sequence = sequence,
                              .head = head,
                              .first = first,
                              .count = left < kPrefillRows ? left : kPrefillRows};
    load_gradient(params, tile, g);
    const int64_t num_keys = tile.num_keys(p.causal);
    for (int64_t key = 0; key < num_keys; key += kPrefillRows) {
      const int64_t keys = num_keys - key < kPrefillRows ? num_keys - key : kPrefillRows;
      const int64_t seen = tile.seen(p.causal) - key, token = sequence.key + key;
      load_rows(p.k, p.dtype, token, head, keys, p.D, keys_rows, D);
      load_panels(p.k, p.dtype, token, head, keys, p.D, keys_panels);
      load_panels(p.v, p.dtype, token, head, keys, p.Dv, values_panels);
      prefill_scores(keys_panels, keys, g.q_packed, tile.count, p.D, seen, scores);
      prefill_scores(values_panels, keys, g.dout_packed, tile.count, p.Dv, seen, gradients);
      prefill_weights(g, p.sm_scale, keys, tile.count, seen, scores, gradients);
      // A tile of which all queries see all keys has no weights of 0.
      const auto has_own_chains = [&](const float* rows, int64_t count, int64_t columns, int64_t ld) {
        return seen < keys && !all_finite(rows, count, columns, ld);
      };
      add_over_queries(scores, keys, g.dout, Dv, tile.count, seen,
                       has_own_chains(g.dout, tile.count, p.Dv, Dv), dv + key * Dv);
      add_over_queries(gradients, keys, g.q, D, tile.count, seen, has_own_chains(g.q, tile.count, p.D, D),
                       dk + key * D);
      add_over_keys(gradients, tile.count, keys_rows, D, keys, seen, has_own_chains(keys_rows, keys, p.D, D),
                    g.dq, Add{});
    }
    store_rows(g.dq, D, tile.count, p.D, p, sequence.query + first, head,
               wanted.dq == nullptr ? nullptr : wanted.dq + first, params.dq);
  }
  store_rows(dk, D, sequence.num_keys, p.D, p, sequence.key, head, wanted.dk, params.dk);
  store_rows(dv, Dv, sequence.num_keys, p.Dv, p, sequence.key, head, wanted.dv, params.dv);
}

void mla_prefill_backward(const MlaPrefillBackwardParams& params, const PrefillSequence& sequence,
                          int64_t head, float* scratch) {
  mla_prefill_backward_rows(params, sequence, head, {}, scratch);
}

// Of a tile of queries: q and dout as rows and transposed, sums of dq, three numbers a query; of a tile of
// keys: k as panels and as rows, v as panels; weights and their gradient; and of all keys sums of dk and dv.
int64_t mla_prefill_backward_scratch_floats(const PrefillProblem& p, int64_t, int64_t num_keys) {
  constexpr int64_t kRows = kPrefillRows;
  const int64_t keys = (num_keys + kRows - 1) / kRows * kRows;
  return (5 * kRows + 1) * p.padded_D() + (3 * kRows + 1) * p.padded_Dv() + 2 * kRows * kRows + 3 * kRows +
         keys * (p.padded_D() + p.padded_Dv());
}

constexpr moela::cpu::MlaPrefillBackwardKernel kMlaPrefillBackwardKernel = {
    mla_prefill_backward_scratch_floats, mla_prefill_backward};

}  // namespace
