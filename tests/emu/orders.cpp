// Barriers, clusters and the tensor core.
#include "small_kernels.h"

namespace {

const Kernels kKernels = {
    // named barriers
    {"two groups share a barrier", {kTwoWarpgroups, [] { bar_sync<1>(128); }}},
    {"an arrival counts twice",
     {kWarpgroup,
      [] {
        if (warp() > 0) return bar_sync<1>(128);
        bar_arrive<1>(128);
        bar_sync<1>(128);
      }}},
    {"more threads expected than come",
     {kWarpgroup,
      [] {
        if (warp() < 2) bar_sync<1>(96);
      }}},
    {"an arrival outruns the barrier",
     {kTwoWarps,
      [] {
        for (int round = 0; round < 2; ++round) {
          if (warp() == 0) bar_arrive<1>(64);
          if (warp() == 1) bar_sync<1>(64);
        }
      }}},
    {"a block barrier in one role",
     {kTwoWarps,
      [] {
        if (warp() == 0) sync_block();
        sync_block();
      }}},
    // registers
    {"more registers than the block has",
     {{.grid = 1, .block = 384, .smem_bytes = 1024},
      [] {
        if (warp() < 4) {
          setmaxnreg_dec<152>();
        } else {
          setmaxnreg_inc<240>();
        }
      }}},
    {"half a warpgroup gives registers back",
     {kWarpgroup,
      [] {
        if (warp() < 2) setmaxnreg_dec<40>();
      }}},
    // clusters
    {"arrival at a block that has exited",
     {kPair,
      [] {
        init(1);
        if (cluster_rank() == 0 && tid() == 0) mbarrier_arrive_remote(mapa(barrier(), 1));
      }}},
    {"store to a block that has exited",
     {kPair,
      [] {
        init(1);
        if (cluster_rank() == 0) sts_cluster(mapa(slot(), 1), 1u);
      }}},
    {"remote arrival before the cluster is there",
     {kPair,
      [] {
        if (tid() == 0) {
          mbarrier_init(barrier(), 1);
          fence_mbarrier_init();
        }
        sync_warp();
        if (tid() == 0) mbarrier_arrive_remote(mapa(barrier(), 1 - cluster_rank()));
        mbarrier_wait_cluster(barrier(), 0);
        cluster_sync();
      }}},
    {"data behind a relaxed cluster barrier",
     {kPair,
      [] {
        sts(slot(), 1u);
        cluster_arrive_relaxed();
        cluster_wait();
        lds_cluster<uint32_t>(mapa(slot(), 1 - cluster_rank()));
        cluster_sync();
      }}},
    {"load at another block's address",
     {kPair,
      [] {
        sts(slot(), 1u);
        cluster_sync();
        lds<uint32_t>(mapa(slot(), 1 - cluster_rank()));
        cluster_sync();
      }}},
    {"neighbour overwrites what is being read",
     {kPair,
      [] {
        sts(slot(), 1u);
        cluster_sync();
        lds<uint32_t>(slot());
        sts_cluster(mapa(slot(), 1 - cluster_rank()), 2u);
        cluster_sync();
      }}},
    // mbarriers
    {"barrier invalidated while others wait",
     {kTwoWarps,
      [] {
        init(1);
        if (warp() == 1) return mbarrier_wait(barrier(), 0);
        if (tid() == 0) mbarrier_arrive(barrier());
        if (tid() == 0) mbarrier_inval(barrier());
      }}},
    {"barrier's bytes reused without inval",
     {kWarp,
      [] {
        init(1);
        if (tid() == 0) sts(barrier(), 1u);
      }}},
    {"first wait for empty with parity 0",
     {kWarp,
      [] {
        init(1);
        mbarrier_wait(barrier(), 0);
      }}},
    {"copy without expect_tx",
     {kWarp,
      [] {
        init(1);
        if (tid() == 0) {
          mbarrier_arrive(barrier());
          bulk_load(tile(), memory(), 128, barrier());
        }
        mbarrier_wait(barrier(), 0);
        lds<uint32_t>(slot());
      }}},
    {"fence of the barrier after the cluster barrier",
     {kPair,
      [] {
        if (tid() == 0) mbarrier_init(barrier(), 1);
        cluster_sync();
        if (tid() == 0) fence_mbarrier_init();
        if (tid() == 0) mbarrier_arrive_remote(mapa(barrier(), 1 - cluster_rank()));
        mbarrier_wait_cluster(barrier(), 0);
        cluster_sync();
      }}},
    // the tensor core
    {"tile not on the repeat of its swizzle",
     {kWarpgroup,
      [] {
        for (uint32_t i = static_cast<uint32_t>(tid()) * 16; i < 24576; i += 128 * 16)
          sts(tile() + i, Vec4{0, 0, 0, 0});
        fence_proxy_async_shared();
        sync_block();
        const uint64_t shifted = make_descriptor(tile() + 512, 0, 1024, OperandLayout::k128B);
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, shifted, shifted, false);
        wgmma_commit();
        wgmma_wait<0>(acc);
      }}},
    {"one warp leaves a product out",
     {kWarpgroup,
      [] {
        for (uint32_t i = static_cast<uint32_t>(tid()) * 16; i < 24576; i += 128 * 16)
          sts(tile() + i, Vec4{0, 0, 0, 0});
        fence_proxy_async_shared();
        sync_block();
        const uint64_t operand = make_descriptor(tile(), 0, 1024, OperandLayout::k128B);
        Acc<8> acc;
        wgmma_fence(acc);
        if (warp() < 3) wgmma_e4m3(acc, operand, operand, false);
        wgmma_commit();
        wgmma_wait<0>(acc);
      }}},
    {"a copy that signals another block",
     {kPair,
      [] {
        init(1);
        if (tid() == 0) bulk_load(tile(), memory(), 128, mapa(barrier(), 1 - cluster_rank()));
        cluster_sync();
      }}},
    {"operand overwritten behind the commit",
     {kWarpgroup,
      [] {
        for (uint32_t i = static_cast<uint32_t>(tid()) * 16; i < 24576; i += 128 * 16)
          sts(tile() + i, Vec4{0, 0, 0, 0});
        fence_proxy_async_shared();
        sync_block();
        const uint64_t operand = make_descriptor(tile(), 0, 1024, OperandLayout::k128B);
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, operand, operand, false);
        wgmma_commit();
        sts(tile() + static_cast<uint32_t>(tid()) * 16, Vec4{1, 1, 1, 1});
        wgmma_wait<0>(acc);
      }}},
    // right
    {"right: a loop over mbarrier_test_wait",
     {kTwoWarps,
      [] {
        init(1);
        if (warp() == 1) {
          while (!mbarrier_test_wait(barrier(), 0)) {
          }
        } else if (tid() == 0) {
          mbarrier_arrive_expect_tx(barrier(), 128);
          bulk_load(tile(), memory(), 128, barrier());
        }
      }}},
    {"right: two roles take turns at two barriers",
     {kTwoWarps,
      [] {
        for (int round = 0; round < 3; ++round) {
          if (warp() == 0) {
            sts(slot(), 1u);
            bar_arrive<1>(64);
            bar_sync<2>(64);
          } else {
            bar_sync<1>(64);
            lds<uint32_t>(slot() - 128);
            bar_arrive<2>(64);
          }
        }
      }}},
    {"right: a barrier invalidated when nobody uses it",
     {kTwoWarps,
      [] {
        init(64);
        mbarrier_arrive(barrier());
        mbarrier_wait(barrier(), 0);
        sync_block();
        if (tid() == 0) mbarrier_inval(barrier());
        sync_block();
        if (tid() == 1) sts(barrier(), 1u);
      }}},
};

}  // namespace

int main(int argc, char** argv) { return run_one(kKernels, argc, argv); }
