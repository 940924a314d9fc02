// The element types that the CPU kernels read and write.
#pragma once

namespace moela::cpu {

enum class Dtype { kFloat32, kBFloat16, kFloat16, kE4m3, kE8m0 };

// Always inlined, as kernels of several instruction sets call it: see simd.h.
__attribute__((always_inline)) constexpr int size_of(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16 ? 2 : 1;
}

}  // namespace moela::cpu
