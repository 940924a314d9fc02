// Where the hardware puts things: swizzle, wgmma operands and accumulators, matrix fragments. Every formula
// here is judged by tests/golden.
#pragma once

#include <cstdint>

#include "emu/run.h"

namespace moela::emu {

// XORs address bits 4..6 with bits 7..9 as far as the span reaches. On absolute shared addresses.
inline uint32_t swizzled(uint32_t address, uint32_t span) {
  const uint32_t mask = span == 128 ? 7 : span == 64 ? EMU_MUTANT(2, 3u, 7u) : span == 32 ? 1 : 0;
  return address ^ ((address >> EMU_MUTANT(3, 7, 8) & mask) << 4);
}

// Bits of the 64-bit descriptor of a wgmma operand in shared memory.
struct Descriptor {
  uint32_t start, leading_bytes, stride_bytes;
  uint32_t span;  // of the swizzle; 16 without
  bool is_swizzled;
  uint32_t base_offset;

  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3FFF) << 4),
        leading_bytes(static_cast<uint32_t>(bits >> EMU_MUTANT(4, 16, 32) & 0x3FFF) << 4),
        stride_bytes(static_cast<uint32_t>(bits >> EMU_MUTANT(4, 32, 16) & 0x3FFF) << 4),
        base_offset(static_cast<uint32_t>(bits >> 49 & 7)) {
    const auto type = static_cast<uint32_t>(bits >> 62);
    is_swizzled = type != 0;
    span = type == 1 ? 128 : type == 2 ? 64 : type == 3 ? 32 : 16;
  }

  // The 16-byte chunk that starts at element (mn, k), both in bytes of a K-major operand's row: mn is a row
  // index and k_bytes is 0 or 16.
  uint32_t k_major(uint32_t mn, uint32_t k_bytes) const {
    const uint32_t next = k_bytes / 16 * (is_swizzled ? 16 : leading_bytes);
    return swizzled(start + mn % 8 * span + mn / 8 * stride_bytes + next, is_swizzled ? span : 0);
  }

  // The chunk of 8 elements along MN that starts mn_bytes into row k of an MN-major operand. Without swizzle
  // the two offsets swap roles.
  uint32_t mn_major(uint32_t mn_bytes, uint32_t k) const {
    if (is_swizzled)
      return swizzled(
          start + k % 8 * span + mn_bytes % span + mn_bytes / span * leading_bytes + k / 8 * stride_bytes,
          span);
    return start + k % 8 * 16 + mn_bytes / 16 * EMU_MUTANT(5, stride_bytes, leading_bytes) +
           k / 8 * EMU_MUTANT(5, leading_bytes, stride_bytes);
  }
};

struct RowColumn {
  int row, column;
};

// Element i of the accumulator of thread t of a warpgroup.
inline RowColumn accumulator_element(int t, int i) {
  return {t / 32 * 16 + t % 32 / 4 + 8 * EMU_MUTANT(6, i / 2 % 2, i % 2),
          i / 4 * 8 + 2 * (t % 4) + EMU_MUTANT(6, i % 2, i / 2 % 2)};
}

// Value v of the A operand that thread t of a warpgroup holds in registers; `per_register` values of 16 or 8
// bits fill one.
inline RowColumn a_register_element(int t, int v, int per_register) {
  const int r = v / per_register;
  return {t / 32 * 16 + t % 32 / 4 + 8 * EMU_MUTANT(7, r % 2, r / 2),
          t % 4 * per_register + v % per_register + 4 * per_register * EMU_MUTANT(7, r / 2, r % 2)};
}

// Half h of register j of lane l of ldmatrix and stmatrix: its place in 8x8 matrix j.
inline RowColumn matrix_element(int l, int h, bool is_transposed) {
  const int outer = l / 4, inner = 2 * (l % 4) + h;
  if (EMU_MUTANT(8, is_transposed, !is_transposed)) return {inner, outer};
  return {outer, inner};
}

}  // namespace moela::emu
