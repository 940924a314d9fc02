// Plan of the CPU fused_experts: how many tokens at once, and the waves of their experts' rows. Pure: no
// torch, no SIMD, unit-tested.
#pragma once

#include "plan/grouped_gemm.h"

namespace moela::plan {

// The float32 sums of the tokens of a chunk, which are kept until their last expert has been added. Fewer
// tokens at once, and each weight would be decoded for fewer rows: 2340 tokens of DeepSeek-V3 are 73 rows for
// each of 256 experts.
constexpr int64_t kMaxSumsBytes = 64 << 20;

struct FusedExpertsPlan {
  int64_t num_chunks;
  int64_t tokens_per_chunk;
};

// A chunk of tokens does not change a bit of a token's result.
inline FusedExpertsPlan plan_fused_experts(int64_t num_tokens, int64_t hidden) {
  const int64_t bytes = hidden == 0 ? 1 : hidden * static_cast<int64_t>(sizeof(float));
  const int64_t most = bytes > kMaxSumsBytes ? 1 : kMaxSumsBytes / bytes;
  const int64_t num_chunks = (num_tokens + most - 1) / most;
  return {.num_chunks = num_chunks,
          .tokens_per_chunk = num_chunks == 0 ? 0 : (num_tokens + num_chunks - 1) / num_chunks};
}

// What a row of a wave takes: x or h as it is packed, and h itself.
inline int64_t fused_experts_row_bytes(int64_t hidden, int64_t intermediate) {
  const int64_t wider = hidden > intermediate ? hidden : intermediate;
  return ((wider + 127) / 128 * 128 + intermediate) * static_cast<int64_t>(sizeof(float));
}

inline std::ostream& operator<<(std::ostream& out, const FusedExpertsPlan& p) {
  return out << p.num_chunks << " x " << p.tokens_per_chunk << " tokens";
}

}  // namespace moela::plan
