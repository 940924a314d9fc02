// A tensor in global memory and the box that one TMA instruction moves: plain C++, for host and emulator.
#pragma once

#include <cstdint>

namespace moela::cuda {

enum class ElementType { kUint8, kBFloat16, kFloat16, kFloat32, kInt32 };

constexpr uint32_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::kUint8: return 1;
    case ElementType::kBFloat16:
    case ElementType::kFloat16: return 2;
    default: return 4;
  }
}

// The value is the number of bytes of a row within which 16-byte chunks are permuted; 0: none.
enum class Swizzle : uint32_t { kNone = 0, k32B = 32, k64B = 64, k128B = 128 };

struct TensorSpec {
  void* base;
  ElementType type;
  int rank;                  // 1..5; dimension 0 is contiguous
  uint64_t dims[5];          // elements
  uint64_t stride_bytes[4];  // of dimensions 1..rank-1
  uint32_t box[5];           // elements
  Swizzle swizzle;
};

constexpr uint32_t box_bytes(const TensorSpec& spec) {
  uint32_t bytes = element_bytes(spec.type);
  for (int d = 0; d < spec.rank; ++d) bytes *= spec.box[d];
  return bytes;
}

}  // namespace moela::cuda
