// TMA and bulk copies. See cuda/hopper/ptx/tma.h, bulk.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::TensorMap;
using emu::Where;

inline void tma_prefetch_map(const TensorMap*) {}

inline void tma_load_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                        Where where = Where::current()) {
  emu::tensor_load(smem, map, 2, {{c0, c1}}, barrier, 0, where);
}
inline void tma_load_multicast_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                                  uint16_t mask, Where where = Where::current()) {
  emu::tensor_load(smem, map, 2, {{c0, c1}}, barrier, mask, where);
}
inline void tma_store_2d(const TensorMap* map, int c0, int c1, SmemAddr smem,
                         Where where = Where::current()) {
  emu::tensor_store(map, 2, {{c0, c1}}, smem, where);
}
inline void tma_load_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, SmemAddr barrier,
                        Where where = Where::current()) {
  emu::tensor_load(smem, map, 3, {{c0, c1, c2}}, barrier, 0, where);
}
inline void tma_load_multicast_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2,
                                  SmemAddr barrier, uint16_t mask, Where where = Where::current()) {
  emu::tensor_load(smem, map, 3, {{c0, c1, c2}}, barrier, mask, where);
}
inline void tma_store_3d(const TensorMap* map, int c0, int c1, int c2, SmemAddr smem,
                         Where where = Where::current()) {
  emu::tensor_store(map, 3, {{c0, c1, c2}}, smem, where);
}
inline void tma_load_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, SmemAddr barrier,
                        Where where = Where::current()) {
  emu::tensor_load(smem, map, 4, {{c0, c1, c2, c3}}, barrier, 0, where);
}
inline void tma_load_multicast_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                                  SmemAddr barrier, uint16_t mask, Where where = Where::current()) {
  emu::tensor_load(smem, map, 4, {{c0, c1, c2, c3}}, barrier, mask, where);
}
inline void tma_store_4d(const TensorMap* map, int c0, int c1, int c2, int c3, SmemAddr smem,
                         Where where = Where::current()) {
  emu::tensor_store(map, 4, {{c0, c1, c2, c3}}, smem, where);
}
inline void tma_load_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                        SmemAddr barrier, Where where = Where::current()) {
  emu::tensor_load(smem, map, 5, {{c0, c1, c2, c3, c4}}, barrier, 0, where);
}
inline void tma_load_multicast_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                                  SmemAddr barrier, uint16_t mask, Where where = Where::current()) {
  emu::tensor_load(smem, map, 5, {{c0, c1, c2, c3, c4}}, barrier, mask, where);
}
inline void tma_store_5d(const TensorMap* map, int c0, int c1, int c2, int c3, int c4, SmemAddr smem,
                         Where where = Where::current()) {
  emu::tensor_store(map, 5, {{c0, c1, c2, c3, c4}}, smem, where);
}

inline void bulk_load(SmemAddr smem, const void* global, uint32_t bytes, SmemAddr barrier,
                      Where where = Where::current()) {
  emu::bulk_load(smem, global, bytes, barrier, 0, where);
}
inline void bulk_load_multicast(SmemAddr smem, const void* global, uint32_t bytes, SmemAddr barrier,
                                uint16_t mask, Where where = Where::current()) {
  emu::bulk_load(smem, global, bytes, barrier, mask, where);
}
inline void bulk_copy_cluster(SmemAddr to, SmemAddr from, uint32_t bytes, SmemAddr barrier,
                              Where where = Where::current()) {
  emu::bulk_copy_cluster(to, from, bytes, barrier, where);
}
inline void bulk_store(void* global, SmemAddr smem, uint32_t bytes, Where where = Where::current()) {
  emu::bulk_store(global, smem, bytes, where);
}
inline void bulk_commit() { emu::bulk_commit(); }

template <int kPending>
void bulk_wait_read(Where where = Where::current()) {
  emu::bulk_wait(kPending, true, where);
}

template <int kPending>
void bulk_wait(Where where = Where::current()) {
  emu::bulk_wait(kPending, false, where);
}

inline void fence_proxy_async_shared() { emu::fence_proxy_async(true, false); }
inline void fence_proxy_async_global() { emu::fence_proxy_async(false, true); }
inline void fence_proxy_async() { emu::fence_proxy_async(true, true); }

}  // namespace moela::cuda::sm90
