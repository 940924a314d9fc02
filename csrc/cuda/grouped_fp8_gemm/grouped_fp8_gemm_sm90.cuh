// grouped_fp8_gemm on Hopper, contiguous and masked: fp8_gemm for groups of rows, each with its own weight.
// DESIGN.md has what differs; csrc/cuda/fp8_gemm/fp8_gemm_sm90.cuh and its DESIGN.md the rest.
//
// Computes d[m] = (a * sf_a)[m] @ (b[e] * sf_b[e]).T for the rows m of each expert e. Bound: the tensor core
// for many rows per expert, the DRAM rate of the weights for few. Grid: persistent; the tile scheduler reads
// the groups. Invariants: a tile has rows of one group; what a box of a reads behind the group's end goes to
// rows of the accumulator that are not stored, and a row that belongs to no group is never written. Numerics:
// those of fp8_gemm with the expert alone, bit by bit.
#pragma once

#include "cuda/block/gemm_block.cuh"

namespace moela::cuda::sm90 {

template <class C, bool kStoresByTma>
MOELA_KERNEL(C::kThreads)
grouped_fp8_gemm_kernel(MOELA_PARAM GemmParams p) {
  gemm_block<C, true, kStoresByTma>(p);
}

}  // namespace moela::cuda::sm90
