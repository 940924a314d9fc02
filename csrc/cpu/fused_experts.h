// Interface of the CPU fused_experts: plain pointers and ints. Definition:
// python/moela/reference/fused_experts.py.
#pragma once

#include "cpu/gemm.h"
#include "cpu/swiglu.h"

namespace moela::cpu {

// The rows of a chunk: which token each is of, and what its result is multiplied with.
struct ExpertRows {
  const int32_t* tokens;
  const float* weights;
};

// The second product of the chunks of a wave, added into the sums of their tokens.
struct FusedExpertsDown {
  const GemmChunk* chunks;  // by expert, ascending
  const ExpertRows* rows;   // of each chunk
  int64_t num_chunks;
  float* sums;  // [num_tokens, H]
  void* out;    // [num_tokens, H] of out_dtype, contiguous
  Dtype out_dtype;
  int64_t num_tokens;
  int64_t H;
  bool is_first;  // wave of these tokens: the sums begin at zero
  bool is_last;   // the sums are rounded into out
};

struct FusedExpertsKernels {
  // Columns of tasks [begin, end), shape.cols each, of h [num_rows, I]. The problem of the chunk has the
  // weights of the gate: N is I, and the rows of b that follow are those of up.
  void (*gate_up)(const GemmChunk&, const Swiglu&, void* h, Dtype h_dtype, int64_t begin, int64_t end);
  // Columns of tasks [begin, end) of the sums.
  void (*down)(const FusedExpertsDown&, int64_t begin, int64_t end);
};

}  // namespace moela::cpu
