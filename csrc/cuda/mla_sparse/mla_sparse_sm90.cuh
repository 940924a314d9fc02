// mla_sparse on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes, for 64 heads of a token at a time, out = softmax(q k^T) v over the rows that its entries name, in
// blocks of 64; k and v are the same bytes. Bound: the tensor core for 64 heads and more of a cache of bytes,
// the memory for fewer and for wider rows. Grid: each thread block walks over units, a tile of heads and a
// piece of a token's entries. Invariants: a block of rows lies in a stage of [kPanels][64][64] elements; rows
// of entries that name nothing are zeros there, and their scores -Inf. Numerics: scores and sums in float32,
// weights rounded to the type of q; the sum of the weights is that of the unrounded ones. Rows of bytes
// become bfloat16 with one rounding of their float32 values.
#pragma once

#include "cuda/mla_decode/mla_loops.cuh"
#include "cuda/mla_decode/mla_merge_sm90.cuh"
#include "cuda/mla_sparse/mla_sparse_load.cuh"
#include "cuda/mla_sparse/mla_sparse_work.cuh"

namespace moela::cuda::sm90 {

template <class C>
MOELA_KERNEL(C::kThreads)
mla_sparse_kernel(MOELA_PARAM MlaSparseParams p) {
  init_barriers<C>();
  griddep_wait();  // the kernels before write q, the cache and the indices
  run_roles<C, MlaSparseWork<C>>(p, [&] {
    if (elect_one()) tma_prefetch_map(&p.q);
    gather_rows<C>(MlaSparseSource<C>(p), p.args.cache);
  });
  griddep_launch();
}

// The pieces of the tokens, with their sinks. Bound: memory, reads each piece once. Grid: ceil(T * H /
// kWarps) blocks; a warp owns a row. Pieces are added in their order.
template <int kV, MlaFloat kFloat>
MOELA_KERNEL(MlaMergeConfig::kThreads)
mla_sparse_merge_kernel(MOELA_PARAM MlaSparseParams p) {
  griddep_wait();
  const MlaSparseArgs& a = p.args;
  const int64_t rows = static_cast<int64_t>(a.T) * a.H;
  const int64_t row = static_cast<int64_t>(block()) * MlaMergeConfig::kWarps + warp();
  if (row >= rows) return;
  const float sink = a.attn_sink == nullptr ? -kInfinity : ldg_nc(a.attn_sink + row % a.H * a.stride_sh);
  merge_row<kV, kFloat>(a.piece_lse + row, a.piece_out + row * kV, p.pieces, rows, sink,
                        static_cast<uint16_t*>(a.out) + row * kV, a.lse + row);
}

}  // namespace moela::cuda::sm90
