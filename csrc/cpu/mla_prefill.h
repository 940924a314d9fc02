// Interface of the CPU mla_prefill. Definition: python/moela/reference/mla_prefill.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

constexpr int64_t kPrefillTile = 96;  // queries, and keys, that are multiplied at a time

// [tokens, heads, columns], strides in elements.
struct HeadRows {
  const void* data;
  int64_t stride_t;
  int64_t stride_h;

  int64_t at(int64_t token, int64_t head) const { return token * stride_t + head * stride_h; }
};

struct PrefillProblem {
  HeadRows q, k, v;
  Dtype dtype;
  int64_t H, D, Dv;
  float sm_scale;
  bool causal;

  // Columns as the kernels hold them, with zeros beyond D and Dv: whole vectors of every instruction set.
  int64_t padded_D() const { return (D + 31) / 32 * 32; }
  int64_t padded_Dv() const { return (Dv + 31) / 32 * 32; }
};

// Rows of one sequence.
struct PrefillSequence {
  int64_t query, num_queries;
  int64_t key, num_keys;
};

// Some queries of one head, from `first` of the sequence on, at most MlaPrefillKernel::queries.
struct PrefillTile {
  PrefillSequence sequence;
  int64_t head, first, count;
  const float* blocks = nullptr;  // of the head, one after the other; nullptr: the tile makes what it needs

  // Keys of the sequence that the tile's first query sees, each query after it seeing one more: of a tile
  // that is not causal all, so that no query sees fewer. Negative: the queries before that see none.
  int64_t seen(bool causal) const {
    return causal ? first + 1 + sequence.num_keys - sequence.num_queries : sequence.num_keys;
  }
  // Keys that its last query sees.
  int64_t num_keys(bool causal) const {
    const int64_t last = seen(causal) + count - 1;
    return last > sequence.num_keys ? sequence.num_keys : last < 0 ? 0 : last;
  }
};

struct MlaPrefillParams {
  PrefillProblem problem;
  void* out;   // [Tq, H, Dv] of the problem's dtype
  float* lse;  // [Tq, H]
};

// A kernel may take keys and values as its products read them, in blocks of some keys of a head, which are
// made once for all tiles of queries. Bits do not depend on it.
struct MlaPrefillKernel {
  int64_t queries;                                   // of a tile at most, on which bits do not depend
  int64_t keys;                                      // of a block
  int64_t (*scratch_floats)(const PrefillProblem&);  // what one run uses
  int64_t (*block_floats)(const PrefillProblem&);    // 0: it takes none
  void (*load_block)(const PrefillProblem&, const PrefillSequence&, int64_t head, int64_t first,
                     float* block);
  void (*run)(const MlaPrefillParams&, const PrefillTile&, float* scratch);
};

}  // namespace moela::cpu
