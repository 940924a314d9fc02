// mla_prefill on the CPU: a tile of queries of one head over the keys that they see. Bound: the float32
// multiply-add rate.
//
// Tiles of 96 keys are taken in order: scores, softmax, weighted values; sums are scaled again where the
// maximum has grown. Queries lie in the lanes of scores and weights, columns in those of values.
//
// Numerics of one query: scores are one chain of fused multiply-adds over the columns, ascending, times
// sm_scale. Weights are e^(score - maximum so far); their sum and the chains of weighted values ascend over
// the keys of a tile. Tiles begin at every 96th query and key of a sequence, so bits depend on it only.
#pragma once

#include "cpu/exp_log.h"
#include "cpu/prefill_tile.h"

namespace {

using moela::cpu::PrefillProblem;
using moela::cpu::PrefillTile;

// The state of the queries of a tile: maxima, sums of weights, and by what a tile rescales what was summed.
struct PrefillSoftmax {
  float* max;
  float* sum;
  float* rescale;
};

// Queries [0, from) do not see key t of a tile of whose keys query 0 sees `seen`, and each one more.
inline int64_t first_that_sees(int64_t t, int64_t seen, int64_t queries) {
  const int64_t from = t - seen + 1;
  return from < 0 ? 0 : from > queries ? queries : from;
}

// How many keys of a tile the queries of the group of query m see at most.
inline int64_t keys_of_group(int64_t m, int64_t seen, int64_t keys) {
  const int64_t most = seen + m + kPrefillGroup - 1;
  return most < 0 ? 0 : most > keys ? keys : most;
}

// Scores [key][kPrefillRows] to weights, 0 where a query does not see the key. The loops over queries are
// vectorized.
inline void prefill_softmax(const PrefillSoftmax& s, float sm_scale, int64_t keys, int64_t queries,
                            int64_t seen, float* scores) {
  alignas(64) float max[kPrefillRows], sum[kPrefillRows];
  for (int64_t i = 0; i < queries; ++i) max[i] = s.max[i];
  for (int64_t t = 0; t < keys; ++t) {
    float* row = scores + t * kPrefillRows;
    for (int64_t i = first_that_sees(t, seen, queries); i < queries; ++i) {
      const float score = row[i] * sm_scale;
      row[i] = score;
      max[i] = score > max[i] ? score : max[i];
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    s.rescale[i] = exp_nonpositive(s.max[i] - max[i]);
    s.max[i] = max[i];
    sum[i] = 0.f;
  }
  for (int64_t t = 0; t < keys; ++t) {
    float* row = scores + t * kPrefillRows;
    const int64_t from = first_that_sees(t, seen, queries);
    for (int64_t i = 0; i < from; ++i) row[i] = 0.f;
    for (int64_t i = from; i < queries; ++i) {
      const float weight = exp_nonpositive(row[i] - max[i]);
      row[i] = weight;
      sum[i] += weight;
    }
  }
  for (int64_t i = 0; i < queries; ++i) s.sum[i] = s.sum[i] * s.rescale[i] + sum[i];
}

// scores[key][query] = keys @ queries.T; those of which no query of a vector sees the key stay as they are.
inline void prefill_scores(const float* panels, int64_t keys, const float* queries, int64_t num_queries,
                           int64_t columns, int64_t seen, float* scores) {
  for (int64_t i = 0; i < num_queries; i += kPrefillCols) {
    const int64_t most = seen + i + kPrefillCols - 1;
    prefill_product<InPanels>(panels, 0, most > keys ? keys : most, queries + i, kPrefillRows, kPrefillCols,
                              columns, scores + i, kPrefillRows, Store{});
  }
}

inline bool all_finite(const float* rows, int64_t count, int64_t columns, int64_t ld) {
  uint32_t largest = 0;
  for (int64_t t = 0; t < count; ++t)
    for (int64_t k = 0; k < columns; ++k) {
      const uint32_t magnitude = bits_of(rows[t * ld + k]) & 0x7FFFFFFF;
      largest = magnitude > largest ? magnitude : largest;
    }
  return largest < 0x7F800000;
}

// sums[query] = To of it and weights @ rows of keys. has_own_chains: as 0 * NaN is NaN, each query gets a
// chain of its own.
template <class To>
void add_over_keys(const float* weights, int64_t queries, const float* rows, int64_t ld, int64_t keys,
                   int64_t seen, bool has_own_chains, float* sums, To to) {
  for (int64_t m = 0; m < queries; m += kPrefillGroup) {
    if (!has_own_chains) {
      prefill_product<OfQuery>(weights, m, kPrefillGroup, rows, ld, ld, keys_of_group(m, seen, keys), sums,
                               ld, to);
      continue;
    }
    for (int64_t i = m; i < m + kPrefillGroup; ++i) {
      const int64_t own = seen + i < 0 ? 0 : seen + i > keys ? keys : seen + i;
      prefill_product<OfQuery, 1>(weights, i, 1, rows, ld, ld, own, sums, ld, to);
    }
  }
}

// Sums of columns and queries that there are not become whatever they become.
inline void init_prefill(const PrefillSoftmax& softmax, int64_t queries, float* sums, int64_t ld) {
  // Less than every score, and finite: its difference to itself is 0.
  constexpr float kLeast = -0x1.fffffep127f;
  std::memset(sums, 0, queries * ld * sizeof(float));
  for (int64_t i = 0; i < queries; ++i) {
    softmax.max[i] = kLeast;
    softmax.sum[i] = 0.f;
  }
}

// Divides the sums.
inline void store_prefill(const moela::cpu::MlaPrefillParams& params, const PrefillTile& tile,
                          const PrefillSoftmax& softmax, float* sums, int64_t ld) {
  const PrefillProblem& p = params.problem;
  for (int64_t i = 0; i < tile.count; ++i) {
    const int64_t row = (tile.sequence.query + tile.first + i) * p.H + tile.head;
    const float total = softmax.sum[i];
    float* out = sums + i * ld;
    const bool is_empty = total == 0.f;  // not so if it is NaN
    params.lse[row] = is_empty ? -__builtin_inff() : softmax.max[i] + log_of(total);
    for (int64_t k = 0; k < p.Dv; ++k) out[k] = is_empty ? 0.f : out[k] / total;
    store_floats(out, p.Dv, p.dtype, params.out, row * p.Dv);
  }
}

void mla_prefill(const moela::cpu::MlaPrefillParams& params, const PrefillTile& tile, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  const PrefillProblem& p = params.problem;
  const int64_t D = p.padded_D(), ld = p.padded_Dv(), queries = (tile.count + 15) / 16 * 16;
  float* packed = scratch;                    // [D][kPrefillRows]
  float* panels = packed + kPrefillRows * D;  // of keys
  float* values = panels + (kPrefillRows + 1) * D;
  float* sums = values + kPrefillRows * ld;
  float* scores = sums + kPrefillRows * ld;
  const PrefillSoftmax softmax = {.max = scores + kPrefillRows * kPrefillRows,
                                  .sum = scores + kPrefillRows * (kPrefillRows + 1),
                                  .rescale = scores + kPrefillRows * (kPrefillRows + 2)};
  load_transposed(p.q, p.dtype, tile.sequence.query + tile.first, tile.head, tile.count, p.D, D, packed);
  init_prefill(softmax, kPrefillRows, sums, ld);

  const int64_t num_keys = tile.num_keys(p.causal);
  for (int64_t key = 0; key < num_keys; key += kPrefillRows) {
    const int64_t keys = num_keys - key < kPrefillRows ? num_keys - key : kPrefillRows;
    const int64_t seen = tile.seen(p.causal) - key, token = tile.sequence.key + key;
    load_panels(p.k, p.dtype, token, tile.head, keys, p.D, panels);
    load_rows(p.v, p.dtype, token, tile.head, keys, p.Dv, values, ld);
    prefill_scores(panels, keys, packed, tile.count, p.D, seen, scores);
    prefill_softmax(softmax, p.sm_scale, keys, queries, seen, scores);
    const bool has_own_chains = seen < keys && !all_finite(values, keys, p.Dv, ld);
    add_over_keys(scores, tile.count, values, ld, keys, seen, has_own_chains, sums,
                  RescaleAndAdd{softmax.rescale});
  }
  store_prefill(params, tile, softmax, sums, ld);
}

int64_t mla_prefill_scratch_floats(const PrefillProblem& p) {
  constexpr int64_t kRows = kPrefillRows;
  return (2 * kRows + 1) * p.padded_D() + 2 * kRows * p.padded_Dv() + kRows * kRows + 3 * kRows;
}

constexpr moela::cpu::MlaPrefillKernel kMlaPrefillKernel = {kPrefillRows,
                                                            kPrefillRows,
                                                            mla_prefill_scratch_floats,
                                                            [](const PrefillProblem&) -> int64_t { return 0; },
                                                            nullptr,
                                                            mla_prefill};

}  // namespace
