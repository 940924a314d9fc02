// Interface of attention over a latent cache on the CPU: what mla_decode and mla_sparse share.
#pragma once

#include <cstdint>

#include "cpu/mla_cache.h"

namespace moela::cpu {

// Fixed, so that bits depend on a query and its keys only.
constexpr int64_t kMlaSplit = 1152;     // keys of a part: twelve tiles
constexpr int64_t kMlaMostHeads = 128;  // of a part

// What the queries of a call share.
struct MlaProblem {
  const void* q;  // rows of latent + rope elements
  Dtype q_dtype;
  int64_t stride_qh;  // from head to head, in elements
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

// Some heads of one query.
struct MlaQuery {
  int64_t index;     // of the query in out and lse
  int64_t q_offset;  // of its first head in q, in elements
  int64_t head;
  int64_t num_heads;  // at most MlaKernels::heads
  MlaKeys keys;
  float* packed;  // their rows of q, as the kernel multiplies them: mla_packed_floats
  float* parts;   // their sums, one after the other: mla_part_floats each

  int64_t padded_heads() const { return (num_heads + 15) / 16 * 16; }
  int64_t num_parts() const { return (keys.count + kMlaSplit - 1) / kMlaSplit; }
};

// Of a part: sums of weighted values [heads, padded_latent], maxima [heads], sums of weights [heads].
inline int64_t mla_part_floats(const MlaProblem& p, const MlaQuery& q) {
  return q.padded_heads() * (p.padded_latent() + 2);
}
// And a line for what a kernel notes about them.
inline int64_t mla_packed_floats(const MlaProblem& p, const MlaQuery& q) {
  return q.padded_heads() * p.padded_D() + 16;
}

struct MlaKernels {
  int64_t heads;  // of a part, on which bits do not depend; at most kMlaMostHeads
  int64_t (*scratch_floats)(const MlaProblem&);  // what attend() uses while it runs
  void (*pack)(const MlaProblem&, const MlaQuery&);
  void (*attend)(const MlaProblem&, const MlaQuery&, int64_t part, float* scratch);
  void (*merge)(const MlaProblem&, const MlaQuery&);
};

}  // namespace moela::cpu
