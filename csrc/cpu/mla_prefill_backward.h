// Interface of the CPU mla_prefill_backward. Definition: python/moela/reference/mla_prefill_backward.py.
#pragma once

#include "cpu/mla_prefill.h"

namespace moela::cpu {

// [Tq, H] float32, strides in elements.
struct HeadValues {
  const float* data;  // nullptr: zeros
  int64_t stride_t;
  int64_t stride_h;
};

struct MlaPrefillBackwardParams {
  PrefillProblem problem;
  HeadRows dout, fwd_out;
  HeadValues lse, dlse;
  void* dq;  // [Tq, H, D] of the problem's dtype
  void* dk;  // [Tk, H, D]
  void* dv;  // [Tk, H, Dv]
};

struct MlaPrefillBackwardKernel {
  // What one run uses of a sequence with so many queries and keys at most.
  int64_t (*scratch_floats)(const PrefillProblem&, int64_t num_queries, int64_t num_keys);
  void (*run)(const MlaPrefillBackwardParams&, const PrefillSequence&, int64_t head, float* scratch);
};

}  // namespace moela::cpu
