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

// What one call uses while it runs. Of a tile of queries: q and dout as rows and transposed, sums of dq,
// three numbers a query; of a tile of keys: k as panels and as rows, v as panels; weights and their gradient;
// and of all keys sums of dk and dv.
inline int64_t mla_prefill_backward_scratch_floats(const PrefillProblem& p, int64_t num_keys) {
  constexpr int64_t kRows = kPrefillTile;
  const int64_t keys = (num_keys + kRows - 1) / kRows * kRows;
  return (5 * kRows + 1) * p.padded_D() + (3 * kRows + 1) * p.padded_Dv() + 2 * kRows * kRows + 3 * kRows +
         keys * (p.padded_D() + p.padded_Dv());
}

using MlaPrefillBackward = void (*)(const MlaPrefillBackwardParams&, const PrefillSequence&, int64_t head,
                                    float* scratch);

}  // namespace moela::cpu
