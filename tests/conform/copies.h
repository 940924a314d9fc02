// What TMA and bulk copies do: each kernel dumps what one instruction has moved.
#pragma once

#include "cuda/hopper/hopper.h"
#include "device.h"

namespace conform {

using namespace moela::cuda::sm90;

constexpr int kCopyThreads = 128;
constexpr uint32_t kCopyBarrier = 65536, kCopySmem = kCopyBarrier + 16;

MOELA_DEVICE void init_copy_barrier() {
  if (tid() == 0) {
    mbarrier_init(smem_base() + kCopyBarrier, 1);
    fence_mbarrier_init();
  }
}

MOELA_DEVICE void dump_smem(uint32_t offset, uint32_t bytes, uint32_t* out) {
  for (uint32_t i = static_cast<uint32_t>(tid()) * 4; i < bytes; i += kCopyThreads * 4)
    stg(out + i / 4, lds<uint32_t>(smem_base() + offset + i));
}

// Word i of the source of every store.
MOELA_DEVICE void fill_smem(uint32_t bytes) {
  for (uint32_t i = static_cast<uint32_t>(tid()); i < bytes / 4; i += kCopyThreads)
    sts<uint32_t>(smem_base() + i * 4, 0x01010101u * (i & 63) + 0x00800000u * (i >> 6 & 1));
  fence_proxy_async_shared();
  sync_block();
}

struct Corner {
  int c[5];
};

template <int kRank>
MOELA_KERNEL(kCopyThreads)
tma_load_kernel(MOELA_PARAM TensorMap map, Corner at, uint32_t bytes, uint32_t offset, uint32_t* out) {
  const SmemAddr smem = smem_base() + offset, barrier = smem_base() + kCopyBarrier;
  init_copy_barrier();
  sync_block();
  if (tid() == 0) {
    tma_prefetch_map(&map);
    mbarrier_arrive_expect_tx(barrier, bytes);
    if constexpr (kRank == 2) tma_load_2d(smem, &map, at.c[0], at.c[1], barrier);
    if constexpr (kRank == 3) tma_load_3d(smem, &map, at.c[0], at.c[1], at.c[2], barrier);
    if constexpr (kRank == 4) tma_load_4d(smem, &map, at.c[0], at.c[1], at.c[2], at.c[3], barrier);
    if constexpr (kRank == 5) tma_load_5d(smem, &map, at.c[0], at.c[1], at.c[2], at.c[3], at.c[4], barrier);
  }
  mbarrier_wait(barrier, 0);
  dump_smem(offset, bytes, out);
}

template <int kRank>
MOELA_KERNEL(kCopyThreads)
tma_store_kernel(MOELA_PARAM TensorMap map, Corner at, uint32_t bytes) {
  fill_smem(bytes);
  if (tid() == 0) {
    const SmemAddr smem = smem_base();
    if constexpr (kRank == 2) tma_store_2d(&map, at.c[0], at.c[1], smem);
    if constexpr (kRank == 3) tma_store_3d(&map, at.c[0], at.c[1], at.c[2], smem);
    if constexpr (kRank == 4) tma_store_4d(&map, at.c[0], at.c[1], at.c[2], at.c[3], smem);
    if constexpr (kRank == 5) tma_store_5d(&map, at.c[0], at.c[1], at.c[2], at.c[3], at.c[4], smem);
    bulk_commit();
    bulk_wait<0>();
  }
}

// Every block of the cluster loads its row of the box and multicasts it to all.
template <int kRank>
MOELA_KERNEL(kCopyThreads)
tma_multicast_kernel(MOELA_PARAM TensorMap map, uint32_t bytes, uint32_t* out) {
  const int rank = cluster_rank(), size = cluster_size();
  const SmemAddr smem = smem_base() + static_cast<uint32_t>(rank) * bytes,
                 barrier = smem_base() + kCopyBarrier;
  const auto mask = static_cast<uint16_t>((1 << size) - 1);
  init_copy_barrier();
  cluster_sync();
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, bytes * static_cast<uint32_t>(size));
    if constexpr (kRank == 2) tma_load_multicast_2d(smem, &map, 0, rank, barrier, mask);
    if constexpr (kRank == 3) tma_load_multicast_3d(smem, &map, 0, 0, rank, barrier, mask);
    if constexpr (kRank == 4) tma_load_multicast_4d(smem, &map, 0, 0, 0, rank, barrier, mask);
    if constexpr (kRank == 5) tma_load_multicast_5d(smem, &map, 0, 0, 0, 0, rank, barrier, mask);
  }
  mbarrier_wait(barrier, 0);
  const uint32_t all = bytes * static_cast<uint32_t>(size);
  dump_smem(0, all, out + static_cast<uint32_t>(block()) * all / 4);
}

// A chain of bulk copies: global -> own block, own block -> the next of the cluster, there -> global.
MOELA_KERNEL(kCopyThreads)
bulk_kernel(const uint32_t* in, uint32_t bytes, uint32_t* out, uint32_t* multicast) {
  const int next = (cluster_rank() + 1) % cluster_size();
  const SmemAddr own = smem_base(), second = own + bytes, third = own + 2 * bytes,
                 barrier = own + kCopyBarrier;
  init_copy_barrier();
  cluster_sync();
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, bytes);
    bulk_load(own, in + static_cast<uint32_t>(block()) * bytes / 4, bytes, barrier);
  }
  mbarrier_wait(barrier, 0);
  cluster_sync();  // the barriers of all blocks are in phase 1
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, bytes);
    bulk_copy_cluster(mapa(second, next), own, bytes, mapa(barrier, next));
  }
  mbarrier_wait_cluster(barrier, 1);
  if (tid() == 0) {
    bulk_store(out + static_cast<uint32_t>(block()) * bytes / 4, second, bytes);
    bulk_commit();
    bulk_wait_read<0>();
    bulk_wait<0>();
  }
  cluster_sync();  // phase 2 everywhere, and the copies to other blocks have been seen to end
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, bytes);
    if (cluster_rank() == 0)
      bulk_load_multicast(third, in, bytes, barrier, static_cast<uint16_t>((1 << cluster_size()) - 1));
  }
  mbarrier_wait_cluster(barrier, 0);
  dump_smem(2 * bytes, bytes, multicast + static_cast<uint32_t>(block()) * bytes / 4);
}

// Thread t sends a word to thread t of the next block, which waits for all of them.
MOELA_KERNEL(kCopyThreads) st_async_kernel(uint32_t* out) {
  const int next = (cluster_rank() + 1) % cluster_size();
  const SmemAddr slot = smem_base() + static_cast<uint32_t>(tid()) * 4, barrier = smem_base() + kCopyBarrier;
  init_copy_barrier();
  cluster_sync();
  if (tid() == 0) {  // the two halves of mbarrier_arrive_expect_tx
    mbarrier_expect_tx(barrier, kCopyThreads * 4);
    mbarrier_arrive(barrier);
  }
  st_async(mapa(slot, next), static_cast<uint32_t>(1000 * cluster_rank() + tid()), mapa(barrier, next));
  mbarrier_wait_cluster(barrier, 0);
  stg(out + block() * kCopyThreads + tid(), lds<uint32_t>(slot));
  cluster_sync();
}

// Generic stores that copies pick up: words to global memory, loaded with a fence for that; then words to
// both memories, one copied each way with a fence for both. out: [3, kCopyThreads].
MOELA_KERNEL(kCopyThreads) proxies_kernel(uint32_t* scratch, uint32_t* out) {
  constexpr uint32_t kBytes = kCopyThreads * 4;
  const SmemAddr smem = smem_base(), slot = smem + static_cast<uint32_t>(tid()) * 4,
                 barrier = smem + kCopyBarrier;
  const auto word = static_cast<uint32_t>(tid());
  init_copy_barrier();
  stg(scratch + tid(), 3 * word);
  fence_proxy_async_global();
  sync_block();
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, kBytes);
    bulk_load(smem, scratch, kBytes, barrier);
  }
  mbarrier_wait(barrier, 0);
  stg(out + tid(), lds<uint32_t>(slot));
  sync_block();
  stg(scratch + tid(), 5 * word);
  sts(slot + kBytes, 7 * word);
  fence_proxy_async();
  sync_block();
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, kBytes);
    bulk_load(smem, scratch, kBytes, barrier);
    bulk_store(out + 2 * kCopyThreads, smem + kBytes, kBytes);
    bulk_commit();
    bulk_wait<0>();
  }
  mbarrier_wait(barrier, 1);
  stg(out + kCopyThreads + tid(), lds<uint32_t>(slot));
}

// Bytes 0, 1, .. mod 251: a byte tells where in the tensor it comes from.
inline std::vector<uint8_t> counting_bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i % 251);
  return bytes;
}

inline TensorMap make_map(const cuda::TensorSpec& spec) {
  TensorMap map;
  if (const std::string refusal = cuda::encode_tensor_map(&map, spec); !refusal.empty()) stop(refusal);
  return map;
}

inline void run_swizzles(const Device& device) {
  constexpr cuda::LaunchShape kShape = {.grid = 1, .block = kCopyThreads, .smem_bytes = kCopySmem};
  auto* out = static_cast<uint32_t*>(device.allocate(kCopySmem));
  uint8_t* tensor = device.upload(counting_bytes(128 * 256));
  auto spec = [&](void* base, uint64_t columns, uint64_t rows, uint32_t span, cuda::Swizzle swizzle) {
    return cuda::TensorSpec{.base = base,
                            .type = cuda::ElementType::kUint8,
                            .rank = 2,
                            .dims = {columns, rows},
                            .stride_bytes = {256},
                            .box = {span, 64},
                            .swizzle = swizzle};
  };
  using cuda::Swizzle;
  for (const Swizzle swizzle : {Swizzle::kNone, Swizzle::k32B, Swizzle::k64B, Swizzle::k128B}) {
    const uint32_t span = swizzle == Swizzle::kNone ? 64 : static_cast<uint32_t>(swizzle), bytes = span * 64;
    const TensorMap map = make_map(spec(tensor, 256, 128, span, swizzle));
    device.launch(kShape, &tma_load_kernel<2>, map, Corner{{16, 3}}, bytes, 0u, out);
    device.dump("tma_load_" + std::to_string(static_cast<uint32_t>(swizzle)), out, bytes);
    void* target = device.allocate(128 * 256);
    device.launch(kShape, &tma_store_kernel<2>, make_map(spec(target, 256, 128, span, swizzle)),
                  Corner{{16, 3}}, bytes);
    device.dump("tma_store_" + std::to_string(static_cast<uint32_t>(swizzle)), target, 128 * 256);
  }
  const TensorMap map = make_map(spec(tensor, 256, 128, 128, Swizzle::k128B));
  device.launch(kShape, &tma_load_kernel<2>, map, Corner{{-16, 100}}, 8192u, 0u, out);
  device.dump("tma_load_outside", out, 8192);
  device.launch(kShape, &tma_load_kernel<2>, map, Corner{{16, 3}}, 8192u, 512u, out);
  device.dump("tma_load_at_512", out, 8192);
  void* target = device.allocate(128 * 256);
  device.launch(kShape, &tma_store_kernel<2>, make_map(spec(target, 200, 40, 128, Swizzle::k128B)),
                Corner{{96, 8}}, 8192u);
  device.dump("tma_store_outside", target, 128 * 256);
}

// A box that leaves the tensor on some sides.
template <int kRank>
void run_rank(const Device& device) {
  constexpr uint64_t kDims[5] = {48, 5, 4, 3, 3};
  constexpr uint32_t kBox[5] = {32, 3, 2, 2, 2};
  constexpr Corner kAt = {{32, 3, -1, 1, 2}};
  constexpr cuda::LaunchShape kShape = {.grid = 1, .block = kCopyThreads, .smem_bytes = kCopySmem};
  cuda::TensorSpec spec = {.base = nullptr,
                           .type = cuda::ElementType::kUint8,
                           .rank = kRank,
                           .dims = {},
                           .stride_bytes = {},
                           .box = {},
                           .swizzle = cuda::Swizzle::kNone};
  uint64_t bytes = 1;
  for (int d = 0; d < kRank; ++d) {
    spec.dims[d] = kDims[d];
    spec.box[d] = kBox[d];
    if (d > 0) spec.stride_bytes[d - 1] = bytes;
    bytes *= kDims[d];
  }
  const std::string name = std::to_string(kRank) + "d";
  auto* out = static_cast<uint32_t*>(device.allocate(kCopySmem));
  spec.base = device.upload(counting_bytes(bytes));
  device.launch(kShape, &tma_load_kernel<kRank>, make_map(spec), kAt, cuda::box_bytes(spec), 0u, out);
  device.dump("tma_load_" + name, out, cuda::box_bytes(spec));

  cuda::TensorSpec row = spec;  // one slice of the outermost dimension, for each block of the cluster
  for (int d = 1; d < kRank; ++d) row.box[d] = 1;
  const uint32_t row_bytes = 256;
  row.dims[0] = row_bytes;
  row.box[0] = row_bytes;
  row.stride_bytes[0] = row_bytes;
  for (int d = 1; d < kRank; ++d) row.dims[d] = d == kRank - 1 ? 4 : 1;
  for (int d = 2; d < kRank; ++d) row.stride_bytes[d - 1] = row_bytes;
  row.base = device.upload(counting_bytes(4 * row_bytes));
  device.launch({.grid = 8, .block = kCopyThreads, .cluster = 4, .smem_bytes = kCopySmem},
                &tma_multicast_kernel<kRank>, make_map(row), row_bytes, out);
  device.dump("tma_multicast_" + name, out, 8 * 4 * row_bytes);

  spec.base = device.allocate(bytes);
  device.launch(kShape, &tma_store_kernel<kRank>, make_map(spec), kAt, cuda::box_bytes(spec));
  device.dump("tma_store_" + name, spec.base, bytes);
}

inline void run_bulk(const Device& device) {
  constexpr uint32_t kBytes = 1024, kBlocks = 4;
  constexpr cuda::LaunchShape kShape = {
      .grid = kBlocks, .block = kCopyThreads, .cluster = 2, .smem_bytes = kCopySmem};
  const uint8_t* in = device.upload(counting_bytes(kBlocks * kBytes));
  auto* out = static_cast<uint32_t*>(device.allocate(kBlocks * kBytes));
  auto* multicast = static_cast<uint32_t*>(device.allocate(kBlocks * kBytes));
  device.launch(kShape, &bulk_kernel, reinterpret_cast<const uint32_t*>(in), kBytes, out, multicast);
  device.dump("bulk_chain", out, kBlocks * kBytes);
  device.dump("bulk_multicast", multicast, kBlocks * kBytes);
  device.launch(kShape, &st_async_kernel, out);
  device.dump("st_async", out, kBlocks * kCopyThreads * 4);
  auto* scratch = static_cast<uint32_t*>(device.allocate(kCopyThreads * 4));
  device.launch({.grid = 1, .block = kCopyThreads, .smem_bytes = kCopySmem}, &proxies_kernel, scratch, out);
  device.dump("proxies", out, 3 * kCopyThreads * 4);
}

inline void run_copies(const Device& device) {
  run_swizzles(device);
  run_rank<2>(device);
  run_rank<3>(device);
  run_rank<4>(device);
  run_rank<5>(device);
  run_bulk(device);
}

}  // namespace conform
