// The gated activation that silu_and_mul and silu_and_mul_quant_fp8 share.
#pragma once

namespace moela::cpu {

// gate * sigmoid(alpha * gate) * (up + shift), which is every kind: limit is infinite without one, alpha 1
// and shift 0 for plain silu.
struct Swiglu {
  float limit;
  float alpha;
  float shift;
};

}  // namespace moela::cpu
