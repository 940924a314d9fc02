// Blocks that each hold a share of a sum and add it to one tile of global memory, one by TMA and one by a
// bulk copy. The last block to be done, by a counter, reads the result.
#pragma once

#include "bugs.h"
#include "cuda/hopper/hopper.h"

struct ReductionConfig {
  static constexpr int kRows = 8, kColumns = 32, kThreads = 32;
  static constexpr uint32_t kTileBytes = kRows * kColumns * 4, kSmemBytes = kTileBytes + 16;
};

struct ReductionParams {
  moela::cuda::sm90::TensorMap tile;  // of sum
  float* sum;                         // [kRows, kColumns], zero
  float* copy;                        // [kRows, kColumns]
  uint32_t* done;                     // how many blocks have added
  Bug bug;
};

namespace reduction {

using namespace moela::cuda::sm90;
using C = ReductionConfig;

MOELA_DEVICE void add_tile(const ReductionParams& p) {
  for (int row = 0; row < C::kRows; ++row)
    sts(smem_base() + static_cast<uint32_t>(row * C::kColumns + lane()) * 4, static_cast<float>(block() + 1));
  if (p.bug == Bug::kZeroedByOneBlock && block() == 0)
    for (int row = 0; row < C::kRows; ++row) stg(p.sum + row * C::kColumns + lane(), 0.f);
  fence_proxy_async_shared();
  sync_warp();
  if (lane() != 0) return;
  if (p.bug == Bug::kStoreInPlaceOfReduction && block() == 1) {
    tma_store_2d(&p.tile, 0, 0, smem_base());
  } else if (block() % 2 == 0) {
    tma_reduce_add_2d(&p.tile, 0, 0, smem_base());
  } else {
    bulk_reduce_add_f32(p.sum, smem_base(), C::kTileBytes);
  }
  bulk_commit();
  if (p.bug == Bug::kCountedWhenRead) {
    bulk_wait_read<0>();
  } else {
    bulk_wait<0>();
  }
}

}  // namespace reduction

MOELA_KERNEL(ReductionConfig::kThreads) reduction_kernel(MOELA_PARAM ReductionParams p) {
  using namespace reduction;
  add_tile(p);
  uint32_t before = 0;
  if (lane() == 0) {
    if (p.bug == Bug::kCountedWithoutAcquire) {
      red_add_release<Scope::kGpu>(p.done, 1u);
      before = static_cast<uint32_t>(block());
    } else {
      before = atom_add_acq_rel<Scope::kGpu>(p.done, 1u);
    }
  }
  before = shfl(before, 0);
  if (p.bug != Bug::kNoSyncAfterCount) sync_warp();
  if (p.bug != Bug::kReadByEveryBlock && before + 1 < static_cast<uint32_t>(num_blocks())) return;
  for (int row = 0; row < C::kRows; ++row) {
    const int i = row * C::kColumns + lane();
    if (p.bug == Bug::kReadOnlyLoadOfReduced) {
      stg(p.copy + i, ldg_nc(p.sum + i));
    } else {
      stg(p.copy + i, ldg(p.sum + i));
    }
  }
}
