// Instantiates every function of the CUDA half of hopper.h, for test_hopper.py: it compiles, and to what.
#include "cuda/hopper/hopper.h"
#include "cuda/hopper/launch.h"

using namespace moela::cuda::sm90;

// Every wgmma for one N, one after the other in one accumulator.
template <int kN>
MOELA_KERNEL(128)
all_wgmma(uint64_t a, uint64_t b, const uint32_t* registers, float* out) {
  Acc<kN> acc;
  MOELA_UNROLL
  for (int i = 0; i < kN / 2; ++i) acc.set(i, 0.f);
  AFragment r;
  MOELA_UNROLL
  for (int i = 0; i < 4; ++i) r.set(i, ldg(registers + i));
  wgmma_fence(acc, r);
  wgmma_e4m3(acc, a, b, true);
  wgmma_e4m3_rs(acc, r, b, true);
  wgmma_bf16<false, false>(acc, a, b, true);
  wgmma_bf16<true, true>(acc, a, b, true);
  wgmma_bf16_rs<false>(acc, r, b, true);
  wgmma_bf16_rs<true>(acc, r, b, true);
  wgmma_f16<false, true>(acc, a, b, true);
  wgmma_f16<true, false>(acc, a, b, true);
  wgmma_f16_rs<true>(acc, r, b, true);
  wgmma_f16_rs<false>(acc, r, b, true);
  wgmma_commit();
  wgmma_wait<0>(acc, r);
  MOELA_UNROLL
  for (int i = 0; i < kN / 2; ++i) stg(out + i * 128 + tid(), acc.get(i));
}

#define MOELA_INSTANTIATE(N, ...) \
  template __global__ void all_wgmma<N>(uint64_t, uint64_t, const uint32_t*, float*);
MOELA_FOR_EACH_N(MOELA_INSTANTIATE)

MOELA_KERNEL(256) all_barriers(SmemAddr barrier, uint32_t* out) {
  setmaxnreg_dec<24>();
  mbarrier_init(barrier, 1);
  fence_mbarrier_init();
  sync_block();
  bar_sync<1>(64);
  bar_arrive<15>(64);
  sync_warp();
  cluster_sync();
  cluster_arrive_relaxed();
  cluster_wait();
  mbarrier_arrive(barrier);
  mbarrier_arrive_remote(mapa(barrier, 1));
  mbarrier_expect_tx(barrier, 16);
  mbarrier_arrive_expect_tx(barrier, 16);
  mbarrier_wait(barrier, 0);
  mbarrier_wait_cluster(barrier, 1);
  stg(out, static_cast<uint32_t>(mbarrier_test_wait(barrier, 0)));
  mbarrier_inval(barrier);
  griddep_wait();
  griddep_launch();
  setmaxnreg_inc<256>();
}

MOELA_KERNEL(128)
all_copies(MOELA_PARAM TensorMap map, const void* in, void* out, SmemAddr barrier) {
  const SmemAddr smem = smem_base();
  tma_prefetch_map(&map);
  tma_load_2d(smem, &map, 0, 1, barrier);
  tma_load_3d(smem, &map, 0, 1, 2, barrier);
  tma_load_4d(smem, &map, 0, 1, 2, 3, barrier);
  tma_load_5d(smem, &map, 0, 1, 2, 3, 4, barrier);
  tma_load_multicast_2d(smem, &map, 0, 1, barrier, 3);
  tma_load_multicast_3d(smem, &map, 0, 1, 2, barrier, 3);
  tma_load_multicast_4d(smem, &map, 0, 1, 2, 3, barrier, 3);
  tma_load_multicast_5d(smem, &map, 0, 1, 2, 3, 4, barrier, 3);
  bulk_load(smem, in, 64, barrier);
  bulk_load_multicast(smem, in, 64, barrier, 3);
  bulk_copy_cluster(mapa(smem, 1), smem, 64, mapa(barrier, 1));
  st_async(mapa(smem, 1), 1, mapa(barrier, 1));
  fence_proxy_async_shared();
  fence_proxy_async_global();
  fence_proxy_async();
  tma_store_2d(&map, 0, 1, smem);
  tma_store_3d(&map, 0, 1, 2, smem);
  tma_store_4d(&map, 0, 1, 2, 3, smem);
  tma_store_5d(&map, 0, 1, 2, 3, 4, smem);
  tma_reduce_add_2d(&map, 0, 1, smem);
  tma_reduce_add_3d(&map, 0, 1, 2, smem);
  tma_reduce_add_4d(&map, 0, 1, 2, 3, smem);
  tma_reduce_add_5d(&map, 0, 1, 2, 3, 4, smem);
  bulk_reduce_add_f32(out, smem, 64);
  bulk_reduce_add_bf16(out, smem, 64);
  bulk_store(out, smem, 64);
  bulk_commit();
  bulk_wait_read<1>();
  bulk_wait<0>();
}

MOELA_KERNEL(128)
all_cache_hints(MOELA_PARAM TensorMap map, const Vec4* in, Vec4* out, SmemAddr barrier) {
  const SmemAddr smem = smem_base();
  const CachePolicy first = tid() == 0 ? policy_evict_first() : policy_evict_last();
  tma_load_2d(smem, &map, 0, 1, barrier, first);
  tma_load_3d(smem, &map, 0, 1, 2, barrier, first);
  tma_load_4d(smem, &map, 0, 1, 2, 3, barrier, first);
  tma_load_5d(smem, &map, 0, 1, 2, 3, 4, barrier, first);
  tma_load_multicast_2d(smem, &map, 0, 1, barrier, 3, first);
  tma_load_multicast_3d(smem, &map, 0, 1, 2, barrier, 3, first);
  tma_load_multicast_4d(smem, &map, 0, 1, 2, 3, barrier, 3, first);
  tma_load_multicast_5d(smem, &map, 0, 1, 2, 3, 4, barrier, 3, first);
  bulk_load(smem, in, 64, barrier, first);
  stg(out, ldg_nc_once(in + tid()));
}

MOELA_KERNEL(32)
all_tensor_maps(TensorMap* map, const void* base, uint32_t size, uint64_t stride) {
  const SmemAddr smem = smem_base();
  tensor_map_set_address(smem, base);
  tensor_map_set_size<0>(smem, size);
  tensor_map_set_size<4>(smem, size);
  tensor_map_set_stride<1>(smem, stride);
  tensor_map_set_stride<4>(smem, stride);
  tensor_map_publish(map, smem);
  tensor_map_set_address(map, base);
  tensor_map_set_size<1>(map, size);
  tensor_map_set_stride<2>(map, stride);
  fence_tensor_map_release();
  fence_tensor_map_acquire(map);
}

template <class T>
MOELA_DEVICE void every_access(const T* in, T* out, SmemAddr smem) {
  // Loads and stores at different addresses: ptxas forwards a value that it has seen stored.
  sts(smem, ldg(in));
  sts_cluster(mapa(smem, 1), lds<T>(smem + 4096));
  stg(out, lds_cluster<T>(mapa(smem + 8192, 1)));
  stg(out + 1, ldg_nc(in + 1));
}

template <Scope kScope, class T>
MOELA_DEVICE void every_flag(T* flag) {
  wait_flag_at_least<kScope>(flag, T{1});
  if (!wait_flag_until<kScope>(flag, T{2}, globaltimer())) nanosleep(100);
  st_release<kScope>(flag, ld_relaxed<kScope>(flag + 1));
  st_relaxed<kScope>(flag + 2, atom_add_acq_rel<kScope>(flag + 3, T{2}));
  red_add_release<kScope>(flag + 4, T{3});
  fence_acq_rel<kScope>();
}

MOELA_KERNEL(128) all_memory(const void* in, void* out, uint32_t* flag, uint64_t* wide_flag) {
  const SmemAddr smem = smem_base() + static_cast<uint32_t>(tid()) * 16;
  every_access(static_cast<const uint8_t*>(in), static_cast<uint8_t*>(out), smem);
  every_access(static_cast<const uint16_t*>(in), static_cast<uint16_t*>(out), smem);
  every_access(static_cast<const float*>(in), static_cast<float*>(out), smem);
  every_access(static_cast<const uint64_t*>(in), static_cast<uint64_t*>(out), smem);
  every_access(static_cast<const Vec4*>(in), static_cast<Vec4*>(out), smem);
  every_flag<Scope::kGpu>(flag);
  every_flag<Scope::kSys>(flag);
  every_flag<Scope::kGpu>(wide_flag);
  every_flag<Scope::kSys>(wide_flag);
}

template <int kCount, bool kTranspose>
MOELA_DEVICE void every_matrix(SmemAddr smem) {
  uint32_t r[kCount];
  ldmatrix<kCount, kTranspose>(smem, r);
  stmatrix<kCount, kTranspose>(smem + 512, r);
}

MOELA_KERNEL(32) all_warp(const float* in, uint32_t* out) {
  const SmemAddr smem = smem_base() + static_cast<uint32_t>(lane()) * 16;
  every_matrix<1, false>(smem);
  every_matrix<2, false>(smem);
  every_matrix<4, false>(smem);
  every_matrix<1, true>(smem);
  every_matrix<2, true>(smem);
  every_matrix<4, true>(smem);
  const float x = ldg(in + lane());
  const uint32_t lanes = vote_ballot(x > 0.f) + redux_max(bits_of(x)) + redux_add(bits_of(x));
  const uint32_t shuffled = bits_of(shfl(x, 3) + shfl_xor(x, 1) + div_rn(x, 3.f) + ex2_approx(x));
  const uint32_t converted = cvt_f16x2_of_e4m3x2(cvt_e4m3x2(x, x)) + cvt_f16x2_of_e5m2x2(cvt_e5m2x2(x, x)) +
                             cvt_bf16x2(x, x) + cvt_f16x2(x, x);
  const float widened = cvt_f32_of_f16(static_cast<uint16_t>(converted)) + cvt_f32_of_bf16(7);
  const int where = block() + num_blocks() + cluster() + cluster_rank() + cluster_size() + warp();
  if (elect_one()) stg(out, lanes + shuffled + converted + bits_of(widened) + static_cast<uint32_t>(where));
}

cudaError_t launch_one(cudaStream_t stream, const moela::cuda::TensorSpec& spec, const void* in, void* out) {
  TensorMap map;
  if (!moela::cuda::encode_tensor_map(&map, spec).empty()) return cudaErrorInvalidValue;
  return moela::cuda::launch({.grid = 2, .block = 128, .cluster = 2, .smem_bytes = 65536}, stream,
                             &all_copies, map, in, out, SmemAddr{0});
}
