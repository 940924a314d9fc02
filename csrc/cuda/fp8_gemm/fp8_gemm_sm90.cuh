// fp8_gemm on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias. The tensor core takes a left operand of 64 rows per
// warpgroup and a right one of kRight rows: tokens and weights, or, with kSwaps, weights and tokens, for few
// tokens. Bound: the tensor core for many tokens, the DRAM rate of b for few. Grid: persistent; a cluster
// owns neighbouring tiles and shares one operand of them by multicast, or owns one swapped tile and shares
// its sum over K. Invariants: a step is 128 columns of K, so it has one scale factor per row of a and one for
// the tile of b (kRight and the rows of a warpgroup divide 128); what lies beyond M, N or K is read as zero
// by TMA and never written. Numerics: per step a tensor-core sum, times the scale factors, added in float32
// in the order of the steps, split by split; the bias; one rounding.
#pragma once

#include "cuda/block/gemm_block.cuh"

namespace moela::cuda::sm90 {

template <class C, bool kStoresByTma>
MOELA_KERNEL(C::kThreads)
fp8_gemm_kernel(MOELA_PARAM GemmParams p) {
  gemm_block<C, false, kStoresByTma>(p);
}

}  // namespace moela::cuda::sm90
