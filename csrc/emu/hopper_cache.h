// Cache hints, which do nothing here. See cuda/hopper/ptx/cache.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::TensorMap;
using emu::Where;

struct CachePolicy {
  uint64_t bits;
};

inline CachePolicy policy_evict_first() { return {emu::kEvictFirst}; }
inline CachePolicy policy_evict_last() { return {emu::kEvictLast}; }

template <class T>
T ldg_nc_once(const T* from, Where where = Where::current()) {
  static_assert(sizeof(T) == 16, "the widest access");
  T value;
  emu::load_global(from, &value, sizeof(T), emu::Path::kReadOnly, where);
  return value;
}

inline void bulk_load(SmemAddr smem, const void* global, uint32_t bytes, SmemAddr barrier, CachePolicy policy,
                      Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::bulk_load(smem, global, bytes, barrier, 0, where);
}
inline void tma_load_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                        CachePolicy policy, Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 2, {{c0, c1}}, barrier, 0, where);
}
inline void tma_load_multicast_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                                  uint16_t mask, CachePolicy policy, Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 2, {{c0, c1}}, barrier, mask, where);
}
inline void tma_load_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, SmemAddr barrier,
                        CachePolicy policy, Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 3, {{c0, c1, c2}}, barrier, 0, where);
}
inline void tma_load_multicast_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2,
                                  SmemAddr barrier, uint16_t mask, CachePolicy policy,
                                  Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 3, {{c0, c1, c2}}, barrier, mask, where);
}
inline void tma_load_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, SmemAddr barrier,
                        CachePolicy policy, Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 4, {{c0, c1, c2, c3}}, barrier, 0, where);
}
inline void tma_load_multicast_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                                  SmemAddr barrier, uint16_t mask, CachePolicy policy,
                                  Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 4, {{c0, c1, c2, c3}}, barrier, mask, where);
}
inline void tma_load_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                        SmemAddr barrier, CachePolicy policy, Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 5, {{c0, c1, c2, c3, c4}}, barrier, 0, where);
}
inline void tma_load_multicast_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                                  SmemAddr barrier, uint16_t mask, CachePolicy policy,
                                  Where where = Where::current()) {
  emu::check_cache_policy(policy.bits, where);
  emu::tensor_load(smem, map, 5, {{c0, c1, c2, c3, c4}}, barrier, mask, where);
}

}  // namespace moela::cuda::sm90
