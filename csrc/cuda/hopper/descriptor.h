// The 64-bit descriptor of a wgmma operand in shared memory. PTX ISA "Matrix descriptor format"; checked
// against tests/golden/gmma_desc.json.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// Bits 62..63. Not the encoding of a tensor map.
enum class OperandLayout : uint64_t { kNone = 0, k128B = 1, k64B = 2, k32B = 3 };

// leading_bytes and stride_bytes, for tiles that start on the repeat of their swizzle (8 rows):
//   K-major, swizzled:   ignored (0 is fine), and 8 rows
//   K-major, none:       from one 16-byte column of K to the next, and 8 rows
//   MN-major, swizzled:  from one span of MN to the next, and 8 rows of K
//   MN-major, none:      8 rows of K, and from one 16-byte column of MN to the next
MOELA_DEVICE uint64_t make_descriptor(SmemAddr tile, uint32_t leading_bytes, uint32_t stride_bytes,
                                      OperandLayout layout) {
  return static_cast<uint64_t>((tile & 0x3FFFF) >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | static_cast<uint64_t>(layout) << 62;
}

// The same operand `bytes` further on.
MOELA_DEVICE uint64_t advance_descriptor(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace moela::cuda::sm90
