// Data that go through global memory, copies, and tensor maps.
#include "small_kernels.h"

namespace {

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

// A tensor map in global memory: 8 rows of 32 words of memory().
constexpr uint32_t kBoxBytes = 1024;
TensorMap* device_map() {
  static auto* map = static_cast<TensorMap*>(emu::allocate(sizeof(TensorMap)));
  return map;
}
void make_device_map() {
  TensorMap map;
  encode_tensor_map(&map, {.base = memory(),
                           .type = cuda::ElementType::kFloat32,
                           .rank = 2,
                           .dims = {32, 8},
                           .stride_bytes = {128},
                           .box = {32, 8},
                           .swizzle = cuda::Swizzle::kNone});
  emu::copy_to(device_map(), &map, sizeof map);
}
// One thread: loads the box in the next phase of the barrier.
void load_box(const TensorMap* map) {
  const uint32_t parity = mbarrier_test_wait(barrier(), 0) ? 1 : 0;
  mbarrier_arrive_expect_tx(barrier(), kBoxBytes);
  tma_load_2d(tile(), map, 0, 0, barrier());
  mbarrier_wait(barrier(), parity);
}
void fill_box() {
  for (uint32_t i = 0; i < kBoxBytes; i += 128) sts(slot() + i, 0u);
  fence_proxy_async_shared();
  sync_warp();
}
void edit_and_release() {
  tensor_map_set_size<1>(device_map(), 4);
  fence_tensor_map_release();
}
void raise_alone() { st_release<Scope::kGpu>(flag(), 1u); }

const Kernels kKernels = {
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
    // tensor maps in global memory
    {"map edited while another block uses it",
     {kTwoBlocks,
      [] {
        init(1);
        if (tid() != 0) return;
        if (block() == 0) return load_box(device_map());
        tensor_map_set_size<1>(device_map(), 4);
      }}},
    {"map of a store edited before it is read",
     {kWarp,
      [] {
        fill_box();
        if (tid() != 0) return;
        tma_store_2d(device_map(), 0, 0, tile());
        bulk_commit();
        tensor_map_set_size<1>(device_map(), 4);
        bulk_wait<0>();
      }}},
    {"map edited without fences",
     {kWarp,
      [] {
        init(1);
        if (tid() != 0) return;
        tensor_map_set_size<1>(device_map(), 4);
        load_box(device_map());
      }}},
    {"map acquired before it is released",
     {kWarp,
      [] {
        init(1);
        if (tid() != 0) return;
        tensor_map_set_size<1>(device_map(), 4);
        fence_tensor_map_acquire(device_map());
        fence_tensor_map_release();
        load_box(device_map());
      }}},
    {"map acquired by another thread",
     {kTwoWarps,
      [] {
        init(1);
        if (tid() == 0) edit_and_release();
        if (tid() == 0) fence_tensor_map_acquire(device_map());
        sync_block();
        if (tid() == 32) load_box(device_map());
      }}},
    {"second edit not acquired",
     {kWarp,
      [] {
        init(1);
        if (tid() != 0) return;
        edit_and_release();
        fence_tensor_map_acquire(device_map());
        load_box(device_map());
        edit_and_release();
        load_box(device_map());
      }}},
    {"map acquired before the flag",
     {kTwoBlocks,
      [] {
        init(1);
        if (tid() != 0) return;
        if (block() == 0) {
          edit_and_release();
          return raise_alone();
        }
        fence_tensor_map_acquire(device_map());
        await();
        load_box(device_map());
      }}},
    {"map fenced for the other proxy",
     {kWarp,
      [] {
        init(1);
        if (tid() != 0) return;
        tensor_map_set_size<1>(device_map(), 4);
        fence_proxy_async();
        load_box(device_map());
      }}},
    {"reduction not waited for",
     {kWarp,
      [] {
        fill_box();
        if (tid() != 0) return;
        bulk_reduce_add_f32(memory(), tile(), kBoxBytes);
        bulk_commit();
        bulk_wait_read<0>();
        ldg(memory());
      }}},
    {"reduction beside an atomic addition",
     {kTwoBlocks,
      [] {
        fill_box();
        if (tid() != 0) return;
        if (block() == 0) return red_add_release<Scope::kGpu>(memory(), 1u);
        bulk_reduce_add_f32(memory(), tile(), kBoxBytes);
        bulk_commit();
        bulk_wait<0>();
      }}},
    {"reduction beside a load",
     {kTwoBlocks,
      [] {
        init(1);
        fill_box();
        if (tid() != 0) return;
        if (block() == 0) return load_box(device_map());
        bulk_reduce_add_f32(memory(), tile(), kBoxBytes);
        bulk_commit();
        bulk_wait<0>();
      }}},
    // right
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
    {"right: a map handed to another block",
     {kTwoBlocks,
      [] {
        init(1);
        if (tid() != 0) return;
        if (block() == 0) {
          edit_and_release();
          return raise_alone();
        }
        await();
        fence_tensor_map_acquire(device_map());
        load_box(device_map());
      }}},
    {"right: a map of a store edited when it is read",
     {kWarp,
      [] {
        fill_box();
        if (tid() != 0) return;
        tma_store_2d(device_map(), 0, 0, tile());
        bulk_commit();
        bulk_wait_read<0>();
        tensor_map_set_size<1>(device_map(), 4);
        bulk_wait<0>();
      }}},
    {"right: two reductions of each of two blocks",
     {kTwoBlocks,
      [] {
        fill_box();
        if (tid() != 0) return;
        for (int i = 0; i < 2; ++i) bulk_reduce_add_f32(memory(), tile(), kBoxBytes);
        bulk_commit();
        bulk_wait<0>();
      }}},
};

}  // namespace

int main(int argc, char** argv) {
  emu::fill(memory(), 0, kWords * 2);
  make_device_map();
  return run_one(kKernels, argc, argv);
}
