// Copies that add. See cuda/hopper/ptx/reduce.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::TensorMap;
using emu::Where;

inline void tma_reduce_add_2d(const TensorMap* map, int c0, int c1, SmemAddr smem,
                              Where where = Where::current()) {
  emu::tensor_reduce_add(map, 2, {{c0, c1}}, smem, where);
}
inline void tma_reduce_add_3d(const TensorMap* map, int c0, int c1, int c2, SmemAddr smem,
                              Where where = Where::current()) {
  emu::tensor_reduce_add(map, 3, {{c0, c1, c2}}, smem, where);
}
inline void tma_reduce_add_4d(const TensorMap* map, int c0, int c1, int c2, int c3, SmemAddr smem,
                              Where where = Where::current()) {
  emu::tensor_reduce_add(map, 4, {{c0, c1, c2, c3}}, smem, where);
}
inline void tma_reduce_add_5d(const TensorMap* map, int c0, int c1, int c2, int c3, int c4, SmemAddr smem,
                              Where where = Where::current()) {
  emu::tensor_reduce_add(map, 5, {{c0, c1, c2, c3, c4}}, smem, where);
}
inline void bulk_reduce_add_f32(void* global, SmemAddr smem, uint32_t bytes, Where where = Where::current()) {
  emu::bulk_reduce_add(global, smem, bytes, ElementType::kFloat32, where);
}
inline void bulk_reduce_add_bf16(void* global, SmemAddr smem, uint32_t bytes,
                                 Where where = Where::current()) {
  emu::bulk_reduce_add(global, smem, bytes, ElementType::kBFloat16, where);
}

}  // namespace moela::cuda::sm90
