// The boxes of tensors that TMA moves: which bytes, and where in shared memory.
#pragma once

#include <algorithm>

#include "emu/layout.h"
#include "emu/world.h"

namespace moela::emu {

constexpr uint32_t kSwizzledBytes = 16;  // what a swizzle moves as a whole

// Calls f(offset of the row in the box, bytes left of the tensor, global address, bytes inside the tensor)
// for every row of the box.
template <class F>
void each_row(const cuda::TensorSpec& s, const Coordinates& at, F f) {
  const auto element = static_cast<int64_t>(cuda::element_bytes(s.type));
  const uint32_t row_bytes = s.box[0] * static_cast<uint32_t>(element);
  const int64_t rows = cuda::box_bytes(s) / row_bytes;
  const int64_t width = static_cast<int64_t>(s.dims[0]) * element, first = at.at[0] * element;
  const int64_t low = std::max<int64_t>(first, 0), high = std::min(first + row_bytes, width);
  for (int64_t row = 0; row < rows; ++row) {
    bool is_inside = low < high;
    int64_t rest = row;
    auto* from = static_cast<uint8_t*>(s.base);
    for (int d = 1; d < s.rank; ++d) {
      const int64_t index = at.at[d] + rest % s.box[d];
      rest /= s.box[d];
      is_inside &= index >= 0 && index < static_cast<int64_t>(s.dims[d]);
      from += index * static_cast<int64_t>(s.stride_bytes[d - 1]);
    }
    f(static_cast<uint32_t>(row * row_bytes), static_cast<uint32_t>(low - first), from + low,
      is_inside ? static_cast<uint32_t>(high - low) : 0u);
  }
}

// The byte of shared memory that holds byte `in_box` of the box at `offset`.
inline uint32_t smem_byte(uint32_t offset, uint32_t in_box, cuda::Swizzle swizzle) {
  const uint32_t address = kSmemWindow + offset + in_box;
  return swizzled(address / kSwizzledBytes * kSwizzledBytes, static_cast<uint32_t>(swizzle)) +
         address % kSwizzledBytes - kSmemWindow;
}

// A swizzled box occupies whole 128-byte rows of chunks, also where its own rows are shorter.
inline uint32_t occupied_bytes(const cuda::TensorSpec& s) {
  const uint32_t bytes = cuda::box_bytes(s);
  return s.swizzle == cuda::Swizzle::kNone ? bytes : (bytes + 127) / 128 * 128;
}

}  // namespace moela::emu
