// Small kernels whose threads are not ordered as they must be:
//   orders <name> <schedule>
// Prints the report, or "nothing".
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "cuda/hopper/hopper.h"
#include "cuda/hopper/launch.h"
#include "schedule.h"

namespace {

using namespace moela;
using namespace moela::cuda::sm90;

struct Kernel {
  cuda::LaunchShape shape;
  std::function<void()> body;
};

// Global memory of every kernel: the first words are zero, the second half has no value.
constexpr int kWords = 1024;
uint32_t* memory() {
  static auto* words = static_cast<uint32_t*>(emu::allocate(kWords * 4));
  return words;
}
uint32_t* flag() { return memory() + 64; }
uint32_t* no_value() { return memory() + kWords / 2; }

constexpr uint32_t kTile = 1024;
SmemAddr barrier() { return smem_base(); }
SmemAddr tile() { return smem_base() + kTile; }
SmemAddr slot() { return tile() + static_cast<uint32_t>(tid()) * 4; }

void init(uint32_t count) {
  if (tid() == 0) {
    mbarrier_init(barrier(), count);
    fence_mbarrier_init();
  }
  cluster_sync();
}

const cuda::LaunchShape kWarp = {.grid = 1, .block = 32, .smem_bytes = 8192},
                        kTwoWarps = {.grid = 1, .block = 64, .smem_bytes = 8192},
                        kWarpgroup = {.grid = 1, .block = 128, .smem_bytes = 32768},
                        kTwoWarpgroups = {.grid = 1, .block = 256, .smem_bytes = 32768},
                        kPair = {.grid = 2, .block = 32, .cluster = 2, .smem_bytes = 8192},
                        kTwoBlocks = {.grid = 2, .block = 32, .smem_bytes = 8192},
                        kOverlapping = {
                            .grid = 1, .block = 64, .smem_bytes = 8192, .overlaps_previous = true};

// Block 0 sends 32 words and raises the flag, block 1 waits and reads.
void hand_over(const std::function<void()>& send, const std::function<void()>& wait) {
  if (block() == 0) {
    send();
  } else {
    wait();
    ldg(memory() + lane());
  }
}
void raise() {
  sync_warp();
  if (lane() == 0) st_release<Scope::kGpu>(flag(), 1u);
}
void await() { wait_flag_at_least<Scope::kGpu>(flag(), 1u); }
void await_relaxed() {
  while (ld_relaxed<Scope::kGpu>(flag()) == 0) {
  }
}
void store_word() { stg(memory() + lane(), 7u); }
// One thread's bulk store of the words, and the wait for it.
template <class Wait>
void store_bulk(Wait wait) {
  sts(slot(), 7u);
  fence_proxy_async_shared();
  sync_warp();
  if (lane() != 0) return;
  bulk_store(memory(), tile(), 128);
  bulk_commit();
  wait();
}

const std::map<std::string, Kernel> kKernels = {
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
    // global memory and flags
    {"stores handed over by a relaxed wait",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              raise();
            },
            await_relaxed);
      }}},
    {"stores handed over by a relaxed flag without a fence",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              sync_warp();
              if (lane() == 0) st_relaxed<Scope::kGpu>(flag(), 1u);
            },
            await);
      }}},
    {"a fence before the stores",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              fence_acq_rel<Scope::kGpu>();
              store_word();
              sync_warp();
              if (lane() == 0) st_relaxed<Scope::kGpu>(flag(), 1u);
            },
            await);
      }}},
    {"a fence by one lane without sync_warp",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              if (lane() != 0) return;
              fence_acq_rel<Scope::kGpu>();
              st_relaxed<Scope::kGpu>(flag(), 1u);
            },
            await);
      }}},
    {"no fence behind the relaxed wait",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              sync_warp();
              if (lane() != 0) return;
              fence_acq_rel<Scope::kGpu>();
              st_relaxed<Scope::kGpu>(flag(), 1u);
            },
            await_relaxed);
      }}},
    {"a loop over a plain load",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              raise();
            },
            [] {
              while (ldg(flag()) == 0) {
              }
            });
      }}},
    {"a flag that nobody raises",
     {kTwoBlocks,
      [] {
        if (block() == 1)
          while (ld_acquire<Scope::kGpu>(flag()) == 0) {
          }
      }}},
    {"a flag raised when the copy has only been read",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_bulk([] { bulk_wait_read<0>(); });
              raise();
            },
            await);
      }}},
    {"a stale load behind a bulk store",
     {kWarp,
      [] {
        store_bulk([] {});
        if (lane() != 0) return;
        ldg(memory());
        bulk_wait<0>();
      }}},
    {"a load of global memory not fenced for the copy",
     {kWarp,
      [] {
        init(1);
        store_word();
        fence_proxy_async_shared();
        sync_warp();
        if (lane() == 0) {
          mbarrier_arrive_expect_tx(barrier(), 128);
          bulk_load(tile(), memory(), 128, barrier());
        }
        mbarrier_wait(barrier(), 0);
      }}},
    {"a counter without a value", {kWarp, [] { red_add_release<Scope::kGpu>(no_value(), 1u); }}},
    {"counting and storing",
     {kTwoBlocks,
      [] {
        if (block() == 0) {
          red_add_release<Scope::kGpu>(memory(), 1u);
        } else {
          stg(memory() + lane(), 1u);
        }
      }}},
    {"copy whose source is overwritten",
     {kWarp,
      [] {
        init(1);
        if (lane() == 0) {
          mbarrier_arrive_expect_tx(barrier(), 128);
          bulk_load(tile(), memory(), 128, barrier());
        }
        sync_warp();
        store_word();
        mbarrier_wait(barrier(), 0);
      }}},
    {"griddep_wait in one warp only",
     {kOverlapping,
      [] {
        if (warp() == 0) griddep_wait();
        ldg(memory());
      }}},
    {"written before griddep_wait",
     {kOverlapping,
      [] {
        stg(memory() + tid(), 1u);
        griddep_wait();
      }}},
    // proxies and copies
    {"exit before the store has read", {kWarp, [] { store_bulk([] {}); }}},
    {"a source of another block",
     {kPair,
      [] {
        sts(slot(), 1u);
        fence_proxy_async_shared();
        cluster_sync();
        if (tid() == 0) {
          bulk_store(memory(), mapa(tile(), 1 - cluster_rank()), 128);
          bulk_commit();
          bulk_wait<0>();
        }
        cluster_sync();
      }}},
    {"a made-up cache policy",
     {kWarp,
      [] {
        init(1);
        if (tid() == 0) bulk_load(tile(), memory(), 128, barrier(), CachePolicy{0});
      }}},
    {"reduction of bytes",
     {kWarp,
      [] {
        TensorMap map;
        encode_tensor_map(&map, {.base = memory(),
                                 .type = cuda::ElementType::kUint8,
                                 .rank = 2,
                                 .dims = {64, 2},
                                 .stride_bytes = {64},
                                 .box = {64, 2},
                                 .swizzle = cuda::Swizzle::kNone});
        if (tid() == 0) tma_reduce_add_2d(&map, 0, 0, tile());
      }}},
};

// The same kinds of kernels, right: nothing is reported.
const std::map<std::string, Kernel> kRight = {
    {"right: relaxed accesses between fences",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              sync_warp();
              if (lane() != 0) return;
              fence_acq_rel<Scope::kGpu>();
              st_relaxed<Scope::kGpu>(flag(), 1u);
            },
            [] {
              await_relaxed();
              fence_acq_rel<Scope::kGpu>();
            });
      }}},
    {"right: a loop over ld_acquire",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_word();
              raise();
            },
            [] {
              while (ld_acquire<Scope::kGpu>(flag()) == 0) {
              }
            });
      }}},
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
    {"right: a flag raised when the copy is written",
     {kTwoBlocks,
      [] {
        hand_over(
            [] {
              store_bulk([] { bulk_wait<0>(); });
              raise();
            },
            await);
      }}},
    {"right: griddep_wait in one warp, then a barrier",
     {kOverlapping,
      [] {
        if (warp() == 0) griddep_wait();
        sync_block();
        ldg(memory() + tid());
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

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, kernel] : kKernels) std::printf("%s\n", name.c_str());
    for (const auto& [name, kernel] : kRight) std::printf("%s\n", name.c_str());
    return 0;
  }
  const std::string name = argv[1];
  const Kernel& kernel = kRight.contains(name) ? kRight.at(name) : kKernels.at(name);
  emu::fill(memory(), 0, kWords * 2);
  const emu::Report report = emu::run({{kernel.shape, kernel.body}}, schedule_of(argv[2]));
  std::printf("%s\n", report.ok() ? "nothing" : report.text.c_str());
  return 0;
}
