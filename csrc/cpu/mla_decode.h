// Interface of the CPU mla_decode. Definition: python/moela/reference/mla_decode.py.
#pragma once

#include <cstdint>

#include "cpu/mla_cache.h"

namespace moela::cpu {

// Fixed, so that bits depend on a request only.
constexpr int64_t kMlaSplit = 1152;  // keys of a part: twelve tiles
constexpr int64_t kMlaHeads = 64;    // of a part

struct MlaDecodeProblem {
  const void* q;  // [B, s_q, H, latent + rope], strides in elements
  Dtype q_dtype;
  int64_t stride_qb;
  int64_t stride_qj;
  int64_t stride_qh;
  MlaCache cache;
  const int32_t* block_table;  // [B, ...], rows stride_tb apart; nullptr: page b is that of request b
  int64_t stride_tb;
  float sm_scale;
  int64_t s_q;
  int64_t H;
  void* out;   // [B, s_q, H, latent] of q_dtype
  float* lse;  // [B, s_q, H]

  int64_t D() const { return cache.latent + cache.rope; }
  // Columns as the kernels hold them, with zeros beyond D and latent: whole tiles of every instruction set.
  int64_t padded_latent() const { return (cache.latent + 31) / 32 * 32; }
  int64_t padded_D() const {
    const int64_t padded = (D() + 15) / 16 * 16;
    return padded < padded_latent() ? padded_latent() : padded;
  }
};

// Some heads of one query.
struct MlaQuery {
  int64_t request;
  int64_t query;
  int64_t head;
  int64_t num_heads;  // at most kMlaHeads
  int64_t num_keys;
  float* packed;  // their rows of q, as the kernel multiplies them: mla_packed_floats
  float* parts;   // their sums, one after the other: mla_part_floats each

  int64_t padded_heads() const { return (num_heads + 15) / 16 * 16; }
  int64_t num_parts() const { return (num_keys + kMlaSplit - 1) / kMlaSplit; }
};

// Of a part: sums of weighted values [heads, padded_latent], maxima [heads], sums of weights [heads].
inline int64_t mla_part_floats(const MlaDecodeProblem& p, const MlaQuery& q) {
  return q.padded_heads() * (p.padded_latent() + 2);
}
inline int64_t mla_packed_floats(const MlaDecodeProblem& p, const MlaQuery& q) {
  return q.padded_heads() * p.padded_D();
}
// What attend() uses while it runs.
inline int64_t mla_scratch_floats(const MlaDecodeProblem& p) {
  constexpr int64_t kTokens = 96;  // as in mla_tile.h
  return (kTokens + 1) * p.padded_D() + (kTokens + 1) * kMlaHeads;
}

struct MlaDecodeKernels {
  void (*pack)(const MlaDecodeProblem&, const MlaQuery&);
  void (*attend)(const MlaDecodeProblem&, const MlaQuery&, int64_t part, float* scratch);
  void (*merge)(const MlaDecodeProblem&, const MlaQuery&);
};

}  // namespace moela::cpu
