// Interface of attention over a latent cache on the CPU: what mla_decode and mla_sparse share.
#pragma once

#include <cstdint>

#include "cpu/mla_cache.h"

namespace moela::cpu {

// Fixed, so that bits depend on a query and its keys only.
constexpr int64_t kMlaSplit = 1152;    // keys of a part: twelve tiles
constexpr int64_t kMlaMostRows = 128;  // of a part

// What the queries of a call share.
struct MlaProblem {
  const void* q;  // rows of latent + rope elements
  Dtype q_dtype;
  int64_t stride_qh;  // from head to head, in elements
  int64_t stride_qt;  // from a query of a request to its next one
  MlaCache cache;
  const float* attn_sink;  // [H]; nullptr: none
  float sm_scale;
  int64_t H;
  void* out;   // [queries, H, latent] of q_dtype
  float* lse;  // [queries, H]

  int64_t D() const { return cache.latent + cache.rope; }
  // Columns as the kernels hold them, with zeros beyond D and latent: whole tiles of every instruction set.
  int64_t padded_latent() const { return (cache.latent + 31) / 32 * 32; }
  int64_t padded_D() const {
    const int64_t padded = (D() + 15) / 16 * 16;
    return padded < padded_latent() ? padded_latent() : padded;
  }
};

// The keys of a query, in order: the slots of some pages one after the other, or slots by number.
struct MlaKeys {
  int64_t count;
  const int32_t* pages;  // of pages: key k is slot k % page_size of pages[k / page_size]
  const int32_t* slots;  // by number, where `pages` is nullptr: page * page_size + slot of the page
};

constexpr int64_t kMlaBlock = 16;  // of heads: of those of a query, and of the last ones some are not there
inline int64_t mla_padded_heads(int64_t heads) { return (heads + kMlaBlock - 1) / kMlaBlock * kMlaBlock; }
inline int64_t mla_parts_of(int64_t keys) { return (keys + kMlaSplit - 1) / kMlaSplit; }

// Some heads of queries of a request that follow each other, for which its keys are read once. Their rows:
// the heads of the first query, filled up to whole vectors, those of the second, and so on.
struct MlaQueries {
  int64_t index;     // of the first query in out and lse
  int64_t q_offset;  // of its first head in q, in elements
  int64_t count;
  int64_t head;
  int64_t num_heads;
  MlaKeys keys;    // of the last query
  int64_t hidden;  // how many of the last keys of a query the one before it does not see
  float* packed;   // their rows of q, as the kernel multiplies them: mla_packed_floats
  float* parts;    // their sums, one after the other: mla_part_floats each

  int64_t padded_heads() const { return mla_padded_heads(num_heads); }
  int64_t num_rows() const { return count * padded_heads(); }  // at most MlaKernels::rows
  int64_t num_keys(int64_t i) const {
    const int64_t seen = keys.count - (count - 1 - i) * hidden;
    return seen < 0 ? 0 : seen;
  }
  MlaKeys keys_of(int64_t i) const {
    MlaKeys seen = keys;
    seen.count = num_keys(i);
    return seen;
  }
  int64_t num_parts() const { return mla_parts_of(keys.count); }
};

inline int64_t mla_part_floats(const MlaProblem& p, const MlaQueries& q) {
  return q.num_rows() * (p.padded_latent() + 2);
}
// And a line for what a kernel notes about the queries.
inline int64_t mla_packed_floats(const MlaProblem& p, const MlaQueries& q) {
  return q.num_rows() * p.padded_D() + 16;
}

// The sums of a part, from the rows of query `i` on.
struct MlaSums {
  float* values;   // [rows, padded_latent], weighted
  float* max;      // [rows]
  float* weights;  // [rows]
};
inline MlaSums mla_sums(const MlaProblem& p, const MlaQueries& q, int64_t part, int64_t i) {
  float* values = q.parts + part * mla_part_floats(p, q);
  float* max = values + q.num_rows() * p.padded_latent();
  const int64_t row = i * q.padded_heads();
  return {.values = values + row * p.padded_latent(), .max = max + row, .weights = max + q.num_rows() + row};
}

struct MlaKernels {
  int64_t rows;  // that a part has at most, kMlaMostRows; bits do not depend on which ones
  int64_t (*scratch_floats)(const MlaProblem&);  // what attend() uses while it runs
  void (*pack)(const MlaProblem&, const MlaQueries&);
  void (*attend)(const MlaProblem&, const MlaQueries&, int64_t part, float* scratch);
  void (*merge)(const MlaProblem&, const MlaQueries&, int64_t row);  // sixteen rows
};

}  // namespace moela::cpu
