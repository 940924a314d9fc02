// mla_decode on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes, for a tile of query rows (queries and heads) of a request, out = softmax(q k^T) v over blocks of
// 64 keys; k and v are the same bytes. Bound: the DRAM rate of the cache for up to 64 rows of a request,
// the tensor core from 128 on. Grid: plan.num_parts x plan.tiles blocks, those of a part side by side, so
// that they read the same keys at about the same time; each does all pieces of its part. Invariants: a block
// of keys lies in a stage of [kPanels][64][64] elements; rows of it that some row of the tile does not see
// are zeros when the tensor core multiplies values. Numerics: scores and sums in float32, weights rounded to
// the type of q; the sum of the weights is that of the unrounded ones.
#pragma once

#include "cuda/mla_decode/mla_few.cuh"
#include "cuda/mla_decode/mla_load_bytes.cuh"
#include "cuda/mla_decode/mla_loops.cuh"
#include "cuda/mla_decode/mla_seesaw.cuh"

namespace moela::cuda::sm90 {

template <class C>
MOELA_KERNEL(C::kThreads)
mla_decode_kernel(MOELA_PARAM MlaDecodeParams p) {
  init_barriers<C>();
  griddep_wait();  // the kernels before write q, the cache and the schedule
  run_roles<C, MlaDecodeWork<C>>(p, [&] { load_whole_blocks<C>(p); });
  griddep_launch();
}

// The same for many rows, where the tensor core bounds: while one warpgroup has its softmax the other
// multiplies.
template <class C>
MOELA_KERNEL(C::kThreads)
mla_decode_seesaw_kernel(MOELA_PARAM MlaDecodeParams p) {
  init_seesaw_barriers<C>();
  griddep_wait();  // as above
  run_seesaw<C, MlaDecodeWork<C>>(p, [&] { load_halves<C>(p); });
  griddep_launch();
}

// The same of a cache of bytes: rows become bfloat16, with one rounding of their float32 values, on the way.
template <class C>
MOELA_KERNEL(C::kThreads)
mla_decode_bytes_kernel(MOELA_PARAM MlaDecodeParams p) {
  init_barriers<C>();
  griddep_wait();  // as above
  run_roles<C, MlaDecodeWork<C>>(p, [&] { load_bytes<C>(p); });
  griddep_launch();
}

// The same for few rows, of either kind of cache: one warpgroup multiplies, with the rows as the right
// operand.
template <class C>
MOELA_KERNEL(C::kThreads)
mla_decode_few_kernel(MOELA_PARAM MlaDecodeParams p) {
  init_few_barriers<C>();
  griddep_wait();  // as above
  run_few<C>(p);
  griddep_launch();
}

}  // namespace moela::cuda::sm90
