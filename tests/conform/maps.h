// What reductions add, and what copies do with tensor maps that the kernel has edited and with cache hints.
#pragma once

#include "copies.h"

namespace conform {

// Every block adds its number + 1 times a counting pattern to the box, which leaves the tensor on some sides.
template <class T>
MOELA_DEVICE T pattern(uint32_t i, int block_idx) {
  const auto value = static_cast<float>(i % 7 + 1) * static_cast<float>(block_idx + 1);
  if constexpr (sizeof(T) == 2) {
    return static_cast<T>(cvt_bf16x2(value, 0.f));
  } else {
    return bits_as<T>(value);
  }
}

template <class T>
MOELA_DEVICE void fill_pattern(uint32_t bytes) {
  for (uint32_t i = static_cast<uint32_t>(tid()); i < bytes / sizeof(T); i += kCopyThreads)
    sts<T>(smem_base() + i * sizeof(T), pattern<T>(i, block()));
  fence_proxy_async_shared();
  sync_block();
}

template <int kRank, class T>
MOELA_KERNEL(kCopyThreads)
tma_reduce_kernel(MOELA_PARAM TensorMap map, Corner at, uint32_t bytes) {
  fill_pattern<T>(bytes);
  if (tid() != 0) return;
  const SmemAddr smem = smem_base();
  if constexpr (kRank == 2) tma_reduce_add_2d(&map, at.c[0], at.c[1], smem);
  if constexpr (kRank == 3) tma_reduce_add_3d(&map, at.c[0], at.c[1], at.c[2], smem);
  if constexpr (kRank == 4) tma_reduce_add_4d(&map, at.c[0], at.c[1], at.c[2], at.c[3], smem);
  if constexpr (kRank == 5) tma_reduce_add_5d(&map, at.c[0], at.c[1], at.c[2], at.c[3], at.c[4], smem);
  bulk_commit();
  bulk_wait<0>();
}

template <class T>
MOELA_KERNEL(kCopyThreads)
bulk_reduce_kernel(T* out, uint32_t bytes) {
  fill_pattern<T>(bytes);
  if (tid() != 0) return;
  if constexpr (sizeof(T) == 2) {
    bulk_reduce_add_bf16(out, smem_base(), bytes);
  } else {
    bulk_reduce_add_f32(out, smem_base(), bytes);
  }
  bulk_commit();
  bulk_wait<0>();
}

// Edits a map three times: address, then size and stride, in shared memory, and then address in place. Loads
// a box with each.
MOELA_KERNEL(kCopyThreads)
edit_map_kernel(TensorMap* map, const uint8_t* tensor, uint32_t bytes, uint32_t* out) {
  const SmemAddr edited = smem_base() + kCopyBarrier + 128, barrier = smem_base() + kCopyBarrier;
  init_copy_barrier();
  if (tid() < 8)
    sts(edited + static_cast<uint32_t>(tid()) * 16, ldg(reinterpret_cast<const Vec4*>(map) + tid()));
  sync_block();
  for (uint32_t round = 0; round < 3; ++round) {
    if (tid() == 0 && round == 0) tensor_map_set_address(edited, tensor + 16);
    if (tid() == 0 && round == 1) {
      tensor_map_set_size<1>(edited, 5);
      tensor_map_set_stride<1>(edited, 128);
    }
    if (warp() == 0) {
      sync_warp();
      if (round < 2) tensor_map_publish(map, edited);
    }
    if (tid() == 0) {
      if (round == 2) {
        tensor_map_set_address(map, tensor + 48);
        fence_tensor_map_release();
      }
      fence_tensor_map_acquire(map);
      mbarrier_arrive_expect_tx(barrier, bytes);
      tma_load_2d(smem_base(), map, 0, 0, barrier, policy_evict_first());
    }
    mbarrier_wait(barrier, round & 1);  // the map and the box are no longer in use
    dump_smem(0, bytes, out + round * bytes / 4);
    sync_block();
  }
}

// The loads of tma_load_kernel and tma_multicast_kernel, with a policy.
MOELA_KERNEL(kCopyThreads)
hinted_kernel(MOELA_PARAM TensorMap map2, MOELA_PARAM TensorMap map3, MOELA_PARAM TensorMap map4,
              MOELA_PARAM TensorMap map5, const uint32_t* in, uint32_t bytes, uint32_t* out) {
  const SmemAddr smem = smem_base(), barrier = smem + kCopyBarrier;
  const CachePolicy first = policy_evict_first(), last = policy_evict_last();
  init_copy_barrier();
  cluster_sync();
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, 9 * bytes);
    tma_load_2d(smem, &map2, 0, 0, barrier, last);
    tma_load_3d(smem + bytes, &map3, 0, 0, 0, barrier, last);
    tma_load_4d(smem + 2 * bytes, &map4, 0, 0, 0, 0, barrier, last);
    tma_load_5d(smem + 3 * bytes, &map5, 0, 0, 0, 0, 0, barrier, last);
    bulk_load(smem + 8 * bytes, in, bytes, barrier, first);
    if (cluster_rank() == 0) {
      tma_load_multicast_2d(smem + 4 * bytes, &map2, 0, 1, barrier, 3, first);
      tma_load_multicast_3d(smem + 5 * bytes, &map3, 0, 0, 1, barrier, 3, first);
      tma_load_multicast_4d(smem + 6 * bytes, &map4, 0, 0, 0, 1, barrier, 3, first);
      tma_load_multicast_5d(smem + 7 * bytes, &map5, 0, 0, 0, 0, 1, barrier, 3, first);
    }
  }
  mbarrier_wait(barrier, 0);
  dump_smem(0, 9 * bytes, out + static_cast<uint32_t>(block()) * 9 * bytes / 4);
  cluster_sync();
}

constexpr int kReducingBlocks = 3;

template <int kRank, class T>
void run_reduction(const Device& device, cuda::ElementType type, const std::string& name) {
  constexpr uint64_t kDims[5] = {24, 5, 4, 3, 3};
  constexpr uint32_t kBox[5] = {16, 3, 2, 2, 2};
  constexpr Corner kAt = {{12, 3, -1, 1, 2}};
  cuda::TensorSpec spec = {.base = nullptr,
                           .type = type,
                           .rank = kRank,
                           .dims = {},
                           .stride_bytes = {},
                           .box = {},
                           .swizzle = cuda::Swizzle::kNone};
  uint64_t count = 1;
  for (int d = 0; d < kRank; ++d) {
    spec.dims[d] = kDims[d];
    spec.box[d] = kBox[d];
    if (d > 0) spec.stride_bytes[d - 1] = count * sizeof(T);
    count *= kDims[d];
  }
  T* sum = device.upload(std::vector<T>(count, 0));
  spec.base = sum;
  device.launch({.grid = kReducingBlocks, .block = kCopyThreads, .smem_bytes = kCopySmem},
                &tma_reduce_kernel<kRank, T>, make_map(spec), kAt, cuda::box_bytes(spec));
  device.dump("tma_reduce_" + std::to_string(kRank) + "d_" + name, sum, count * sizeof(T));
}

template <class T>
void run_reductions(const Device& device, cuda::ElementType type, const std::string& name) {
  run_reduction<2, T>(device, type, name);
  run_reduction<3, T>(device, type, name);
  run_reduction<4, T>(device, type, name);
  run_reduction<5, T>(device, type, name);
  T* sum = device.upload(std::vector<T>(64, 0));
  device.launch({.grid = kReducingBlocks, .block = kCopyThreads, .smem_bytes = kCopySmem},
                &bulk_reduce_kernel<T>, sum, static_cast<uint32_t>(64 * sizeof(T)));
  device.dump("bulk_reduce_" + name, sum, 64 * sizeof(T));
}

inline void run_edited_maps(const Device& device) {
  uint8_t* tensor = device.upload(counting_bytes(2048));
  const TensorMap map = make_map({.base = tensor,
                                  .type = cuda::ElementType::kUint8,
                                  .rank = 2,
                                  .dims = {64, 8},
                                  .stride_bytes = {64},
                                  .box = {64, 8},
                                  .swizzle = cuda::Swizzle::kNone});
  auto* out = static_cast<uint32_t*>(device.allocate(3 * 512));
  device.launch({.grid = 1, .block = kCopyThreads, .smem_bytes = kCopyBarrier + 256}, &edit_map_kernel,
                device.upload(std::vector<TensorMap>{map}), static_cast<const uint8_t*>(tensor), 512u, out);
  device.dump("edited_maps", out, 3 * 512);
}

inline void run_hints(const Device& device) {
  constexpr uint32_t kBytes = 256;
  uint8_t* tensor = device.upload(counting_bytes(2 * kBytes));
  TensorMap maps[4];
  for (int rank = 2; rank <= 5; ++rank) {
    cuda::TensorSpec spec = {.base = tensor,
                             .type = cuda::ElementType::kUint8,
                             .rank = rank,
                             .dims = {kBytes, 1, 1, 1, 1},
                             .stride_bytes = {kBytes, kBytes, kBytes, kBytes},
                             .box = {kBytes, 1, 1, 1, 1},
                             .swizzle = cuda::Swizzle::kNone};
    spec.dims[rank - 1] = 2;
    maps[rank - 2] = make_map(spec);
  }
  auto* out = static_cast<uint32_t*>(device.allocate(2 * 9 * kBytes));
  device.launch({.grid = 2, .block = kCopyThreads, .cluster = 2, .smem_bytes = kCopySmem}, &hinted_kernel,
                maps[0], maps[1], maps[2], maps[3], reinterpret_cast<const uint32_t*>(tensor), kBytes, out);
  device.dump("hinted", out, 2 * 9 * kBytes);
}

inline void run_maps(const Device& device) {
  run_reductions<uint32_t>(device, cuda::ElementType::kFloat32, "f32");
  run_reductions<uint16_t>(device, cuda::ElementType::kBFloat16, "bf16");
  run_edited_maps(device);
  run_hints(device);
}

}  // namespace conform
