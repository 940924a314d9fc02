// A small GEMM that uses what real kernels use, right when bug is kNone, and wrong in one place otherwise.
//
// d[M, N] = sf_a[K/128, M] * (a[M, K] x b[N, K]^T), a and b e4m3, d bfloat16. A cluster of two blocks owns
// two tiles of 64 rows and the same columns; each block loads half of b and multicasts it to both. Warpgroup
// 0 multiplies and stores, one thread of warpgroup 1 loads.
#pragma once

#include "bugs.h"
#include "cuda/hopper/hopper.h"

struct PipelineConfig {
  static constexpr int kM = 64, kN = 64, kK = 128, kStages = 2, kThreads = 256, kCluster = 2;
  static constexpr int kMathWarps = 4;
  static constexpr uint32_t kABytes = kM * kK, kBBytes = kN * kK, kSfBytes = kM * 4, kDBytes = kM * kN * 2;
  static constexpr uint32_t kA = 0, kB = kA + kStages * kABytes, kD = kB + kStages * kBBytes,
                            kSf = kD + kDBytes, kFull = kSf + kStages * kSfBytes,
                            kEmpty = kFull + kStages * 8, kSmemBytes = kEmpty + kStages * 8;
  static_assert(kA % 1024 == 0 && kB % 1024 == 0 && kD % 1024 == 0,
                "a tile starts on the repeat of its swizzle");
};

struct PipelineParams {
  moela::cuda::sm90::TensorMap a, b, sf_a, d;
  int M, N, K;
  Bug bug;
};

namespace pipeline {

using namespace moela::cuda::sm90;
using C = PipelineConfig;

// Where both roles are: a stage of the ring and how often it has been used, as a parity.
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  MOELA_DEVICE void advance() {
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// full[s]: 1 arrival (the loading thread, with the bytes of both blocks' copies). The math warps wait.
MOELA_DEVICE SmemAddr full(int stage) { return smem_base() + C::kFull + static_cast<uint32_t>(stage) * 8; }
// empty[s]: one arrival per math warp of both blocks. The loading thread waits: its copies go to both.
MOELA_DEVICE SmemAddr empty(int stage) { return smem_base() + C::kEmpty + static_cast<uint32_t>(stage) * 8; }

MOELA_DEVICE void init_barriers(Bug bug) {
  if (bug == Bug::kInitByEveryWarp ? lane() == 0 : tid() == 0) {
    const int blocks = bug == Bug::kEmptyCountOfOwnBlock ? 1 : C::kCluster;
    for (int s = 0; s < C::kStages; ++s) {
      mbarrier_init(full(s), 1);
      mbarrier_init(empty(s), static_cast<uint32_t>(blocks * C::kMathWarps + (bug == Bug::kCountTooLarge)));
    }
    if (bug != Bug::kNoFenceAfterInit && bug != Bug::kFenceAfterClusterSync) fence_mbarrier_init();
  }
  if (bug != Bug::kNoClusterSyncAfterInit) {
    cluster_sync();
  } else {
    sync_block();
  }
  if (bug == Bug::kFenceAfterClusterSync && tid() == 0) fence_mbarrier_init();
}

MOELA_DEVICE void load_tiles(const PipelineParams& p) {
  const Bug bug = p.bug;
  const SmemAddr smem = smem_base();
  const int rank = cluster_rank();
  Position at;
  for (int n0 = 0; n0 < p.N; n0 += C::kN) {
    for (int k0 = 0; k0 < p.K; k0 += C::kK, at.advance()) {
      const auto s = static_cast<uint32_t>(at.stage);
      const uint32_t parity = bug == Bug::kProducerPhase ? at.parity : at.parity ^ 1;
      uint32_t bytes = C::kABytes + C::kBBytes + C::kSfBytes;
      if (bug == Bug::kExpectTooMuch) bytes += 16;
      if (bug == Bug::kExpectTooLittle) bytes -= 256;
      if (bug == Bug::kExpectBeforeWait) mbarrier_arrive_expect_tx(full(at.stage), bytes);
      if (bug == Bug::kWaitAtBlockScope) {
        mbarrier_wait(empty(at.stage), parity);
      } else if (bug != Bug::kNoWaitForEmpty) {
        mbarrier_wait_cluster(empty(at.stage), parity);
      }
      if (bug == Bug::kExpectOnlyInRankZero && rank > 0) {
        mbarrier_arrive(full(at.stage));
      } else if (bug != Bug::kExpectBeforeWait) {
        mbarrier_arrive_expect_tx(full(at.stage), bytes);
      }
      const int row = block() * C::kM;
      const bool swaps = bug == Bug::kCoordinatesSwapped;
      tma_load_2d(smem + C::kA + s * C::kABytes, &p.a, swaps ? row : k0, swaps ? k0 : row, full(at.stage));
      const uint32_t share = bug == Bug::kWrongMulticastHalf ? 0 : static_cast<uint32_t>(rank);
      const SmemAddr half = smem + C::kB + s * C::kBBytes + share * C::kBBytes / 2;
      const auto mask = static_cast<uint16_t>(bug == Bug::kWrongMulticastMask ? 1 << rank : 3);
      tma_load_multicast_2d(half, &p.b, k0, n0 + rank * C::kN / 2, full(at.stage), mask);
      tma_load_2d(smem + C::kSf + s * C::kSfBytes, &p.sf_a, block() * C::kM, k0 / C::kK, full(at.stage));
    }
  }
  if (bug == Bug::kOneLoadTooMany) {
    mbarrier_wait_cluster(empty(at.stage), at.parity ^ 1);
    mbarrier_arrive_expect_tx(full(at.stage), C::kSfBytes);
    tma_load_2d(smem + C::kSf + static_cast<uint32_t>(at.stage) * C::kSfBytes, &p.sf_a, 0, 0, full(at.stage));
    return;
  }
  // The other block's warps arrive here to the end: a block must not exit before them.
  if (bug != Bug::kExitBeforeRemoteArrivals)
    for (int s = 0; s < C::kStages; ++s, at.advance()) mbarrier_wait_cluster(empty(at.stage), at.parity ^ 1);
}

// Lanes 0 and 1 give the stage back to the two blocks that load into it.
MOELA_DEVICE void release_stage(int stage, Bug bug) {
  if (bug != Bug::kNoSyncWarp) sync_warp();  // the loads of all lanes come before the arrival of one
  const int targets = bug == Bug::kNoRemoteRelease ? 1 : bug == Bug::kReleaseByAllLanes ? 32 : C::kCluster;
  const int rank = bug == Bug::kNoRemoteRelease         ? cluster_rank()
                   : bug == Bug::kReleaseToOneRankTwice ? 0
                                                        : lane() % C::kCluster;
  if (lane() < targets) {
    if (bug == Bug::kReleaseAtTheWrongAddress) {
      mbarrier_arrive(mapa(empty(stage), rank));
    } else {
      mbarrier_arrive_remote(mapa(empty(stage), rank));
    }
  }
  if (bug == Bug::kReleaseTwice && lane() == 0) mbarrier_arrive(empty(stage));
}

MOELA_DEVICE void store_tile(const PipelineParams& p, const float (&out)[C::kN / 2], int n0) {
  const Bug bug = p.bug;
  const SmemAddr tile = smem_base() + C::kD;
  if (tid() == (bug == Bug::kWaitByAnotherThread ? 32 : 0) && bug != Bug::kStagingReusedEarly) {
    if (bug == Bug::kWaitLeavesOneStore) {
      bulk_wait_read<1>();
    } else {
      bulk_wait_read<0>();
    }
  }
  if (bug != Bug::kStagingNotHandedOver) bar_sync<1>(128);
  MOELA_UNROLL
  for (int j = 0; j < 4; ++j) {  // 16 columns at a time
    const int row = warp() * 16 + (lane() & 15), chunk = j * 2 + (lane() >> 4);
    const uint32_t r[4] = {cvt_bf16x2(out[j * 8], out[j * 8 + 1]), cvt_bf16x2(out[j * 8 + 2], out[j * 8 + 3]),
                           cvt_bf16x2(out[j * 8 + 4], out[j * 8 + 5]),
                           cvt_bf16x2(out[j * 8 + 6], out[j * 8 + 7])};
    stmatrix<4>(tile + static_cast<uint32_t>(row * 128 + ((chunk ^ (row & 7)) << 4)), r);
  }
  if (bug != Bug::kNoProxyFence && (bug != Bug::kFenceInOneWarpOnly || warp() == 0))
    fence_proxy_async_shared();
  if (bug == Bug::kStagingBarrierCount && warp() == 3) {
    bar_sync<1>(96);
  } else if (bug == Bug::kBarrierOfAnotherId && warp() == 3) {
    bar_sync<2>(128);
  } else if (bug != Bug::kStoreBeforeBarrier) {
    bar_sync<1>(128);
  }
  if (tid() == 0) {
    tma_store_2d(&p.d, n0, block() * C::kM, tile);
    if (bug != Bug::kStoreNotCommitted && bug != Bug::kCommitByAnotherThread) bulk_commit();
  }
  if (tid() == 32 && bug == Bug::kCommitByAnotherThread) bulk_commit();
}

MOELA_DEVICE void multiply_tiles(const PipelineParams& p) {
  const Bug bug = p.bug;
  const SmemAddr smem = smem_base();
  const int row = warp() * 16 + lane() / 4;
  Position at;
  bool is_first_round = true;
  for (int n0 = 0; n0 < p.N; n0 += C::kN) {
    float out[C::kN / 2] = {};
    for (int k0 = 0; k0 < p.K; k0 += C::kK, at.advance()) {
      if (bug == Bug::kOneStepTooFew && n0 + C::kN >= p.N && k0 + C::kK >= p.K) break;
      const auto s = static_cast<uint32_t>(at.stage);
      is_first_round = is_first_round && (k0 < C::kStages * C::kK && n0 == 0);
      const bool waits = bug == Bug::kNoWaitForFull         ? false
                         : bug == Bug::kNoWaitInLaterRounds ? is_first_round
                         : bug == Bug::kOnlyOneWarpWaits    ? warp() == 0
                                                            : true;
      if (waits) mbarrier_wait(full(at.stage), bug == Bug::kConsumerPhase ? at.parity ^ 1 : at.parity);
      const SmemAddr sf = smem + C::kSf + s * C::kSfBytes + static_cast<uint32_t>(row) * 4;
      float sf_low = lds<float>(sf), sf_high = lds<float>(sf + 32);
      if (bug == Bug::kStoreOntoBarrier && n0 > 0 && tid() == 5) sts<uint32_t>(full(at.stage) + 4, 0);
      const uint64_t a =
          make_descriptor(smem + C::kA + s * C::kABytes, 0, bug == Bug::kWrongStride ? 512 : 1024,
                          bug == Bug::kWrongSwizzle ? OperandLayout::k64B : OperandLayout::k128B);
      const uint64_t b = make_descriptor(smem + C::kB + s * C::kBBytes, 0, 1024, OperandLayout::k128B);
      Acc<C::kN> acc;
      if (bug != Bug::kNoWgmmaFence) wgmma_fence(acc);
      MOELA_UNROLL
      for (uint32_t k = 0; k < 4; ++k) {
        const uint32_t step = bug == Bug::kDivergentOperands && warp() == 2 ? 64 : 32;
        wgmma_e4m3(acc, advance_descriptor(a, k * (bug == Bug::kDescriptorAdvance ? 16 : 32)),
                   advance_descriptor(b, k * step), k > 0 || bug == Bug::kAddsToNothing);
      }
      if (bug != Bug::kNoWgmmaCommit) wgmma_commit();
      if (bug == Bug::kEarlyRelease) release_stage(at.stage, bug);
      if (bug == Bug::kWaitsForOlderProducts) {
        wgmma_wait<1>(acc);
      } else if (bug != Bug::kNoWgmmaWait) {
        wgmma_wait<0>(acc);
      }
      if (bug != Bug::kEarlyRelease) release_stage(at.stage, bug);
      if (bug == Bug::kScalesReadAfterRelease) {
        sf_low = lds<float>(sf);
        sf_high = lds<float>(sf + 32);
      }
      MOELA_UNROLL
      for (int i = 0; i < C::kN / 2; ++i) out[i] += (i & 2 ? sf_high : sf_low) * acc.get(i);
    }
    store_tile(p, out, n0);
  }
  if (tid() == 0 && bug != Bug::kExitBeforeStoreRead) bulk_wait_read<0>();
}

}  // namespace pipeline

MOELA_KERNEL(PipelineConfig::kThreads) pipeline_kernel(MOELA_PARAM PipelineParams p) {
  using namespace pipeline;
  init_barriers(p.bug);
  if (warp() >= C::kMathWarps) {
    const bool dec =
        p.bug == Bug::kRegistersByOneWarp ? warp() == C::kMathWarps : p.bug != Bug::kTooManyRegisters;
    if (dec) setmaxnreg_dec<40>();
    if (p.bug == Bug::kElectInDivergentCode) {
      if (warp() == C::kMathWarps && lane() < 16 && elect_one()) load_tiles(p);
    } else if (warp() == C::kMathWarps && elect_one()) {
      load_tiles(p);
    }
  } else {
    setmaxnreg_inc<256>();  // the compiler gave 248: only what the loading warps return makes it possible
    multiply_tiles(p);
  }
}
