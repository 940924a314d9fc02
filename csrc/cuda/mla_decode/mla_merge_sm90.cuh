// The merge of the pieces of split requests, as merge_states defines it.
//
// Bound: memory, reads each piece once. Grid: ceil(items * rows / kWarps) blocks; a warp owns a row. Requests
// of one piece are written by mla_decode_kernel; without a schedule for the batch all become NaN. Numerics:
// float32; pieces are added in their order, whatever the number of parts or blocks.
#pragma once

#include "cuda/block/softmax.cuh"
#include "cuda/mla_decode/mla_attend.cuh"
#include "cuda/mla_decode/mla_pieces.cuh"

namespace moela::cuda::sm90 {

struct MlaMergeConfig {
  static constexpr int kWarps = 8, kThreads = kWarps * 32;
};

// Of the pieces' lse, which lanes hold in turn, the largest.
MOELA_DEVICE float largest_lse(const float* lse, int pieces, int64_t rows) {
  float largest = -kInfinity;
  for (int i = lane(); i < pieces; i += 32) largest = fmaxf(largest, ldg(lse + i * rows));
  MOELA_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shfl_xor(largest, mask));
  return largest;
}

// One warp: the pieces of a row, which are `rows` rows apart, to out and lse; NaN if there is none. The sink
// is a score beside those of the keys that only out knows of: -Inf for none.
template <int kV, MlaFloat kFloat>
MOELA_DEVICE void merge_row(const float* piece_lse, const float* piece_out, int pieces, int64_t rows,
                            float sink, uint16_t* out, float* lse) {
  constexpr int kVecs = kV / 128;  // 4 columns each, of a lane
  const float largest = largest_lse(piece_lse, pieces, rows), base = largest == -kInfinity ? 0.f : largest;
  float sums[kVecs * 4] = {}, total = pieces > 0 ? 0.f : kNan;
  for (int i = 0; i < pieces; ++i) {
    const int64_t piece = i * rows;
    const float weight = ex2_approx((ldg(piece_lse + piece) - base) * kLog2E);
    total += weight;
    const Vec4* from = reinterpret_cast<const Vec4*>(piece_out + piece * kV) + lane();
    MOELA_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const Vec4 x = ldg(from + v * 32);
      const uint32_t words[4] = {x.x, x.y, x.z, x.w};
      MOELA_UNROLL
      for (int j = 0; j < 4; ++j) sums[v * 4 + j] += weight * float_of(words[j]);
    }
  }
  const float inverse = total == 0.f ? 0.f : div_rn(1.f, total + ex2_approx((sink - base) * kLog2E));
  uint64_t* to = reinterpret_cast<uint64_t*>(out) + lane();
  MOELA_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const float* s = sums + v * 4;
    stg(to + v * 32, static_cast<uint64_t>(rounded_pair<kFloat>(s[2] * inverse, s[3] * inverse)) << 32 |
                         rounded_pair<kFloat>(s[0] * inverse, s[1] * inverse));
  }
  if (lane() == 0) stg(lse, total == 0.f ? -kInfinity : largest + natural_log(total));
}

template <int kV, MlaFloat kFloat>
MOELA_KERNEL(MlaMergeConfig::kThreads)
mla_merge_kernel(MOELA_PARAM MlaDecodeParams p) {
  griddep_wait();
  const MlaDecodeArgs& a = p.args;
  const int64_t warp_at = static_cast<int64_t>(block()) * MlaMergeConfig::kWarps + warp();
  if (warp_at >= static_cast<int64_t>(a.items) * a.item_rows) return;
  const auto item = static_cast<int>(warp_at / a.item_rows), row = static_cast<int>(warp_at % a.item_rows);
  const bool has_pieces = is_scheduled(p);
  const int of_item = p.num_parts + 2 + item, first = has_pieces ? planned(a, of_item, 0) : 0;
  const int pieces = has_pieces ? planned(a, of_item + 1, 0) - first : 0;
  const MlaRows rows = rows_of(a, item, row);
  if (pieces == 1 || rows.first >= rows.queries * a.H) return;
  const int64_t begin = static_cast<int64_t>(first) * a.item_rows + row;
  const int64_t at = static_cast<int64_t>(rows.first_query) * a.H + rows.first;
  merge_row<kV, kFloat>(a.piece_lse + begin, a.piece_out + begin * kV, pieces, a.item_rows, -kInfinity,
                        static_cast<uint16_t*>(a.out) + at * kV, a.lse + at);
}

}  // namespace moela::cuda::sm90
