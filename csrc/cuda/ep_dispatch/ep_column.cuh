// Columns of a wire row: which of them TMA copies, and the others, through registers.
#pragma once

#include "cuda/ep_dispatch/ep_dispatch.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

// The largest power of two up to 16 that divides base, stride and width of a column; with 16 TMA copies it.
MOELA_DEVICE uint32_t ep_width(const EpColumn& c) {
  const uint64_t bits = reinterpret_cast<uint64_t>(c.data) | static_cast<uint64_t>(c.stride) | c.bytes | 16;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

MOELA_DEVICE bool ep_by_tma(const EpColumn& c) { return ep_width(c) == 16; }

// f(T{}) for the type of that width, below 16.
template <class F>
MOELA_DEVICE void ep_with_width(uint32_t width, F f) {
  if (width == 8) {
    f(uint64_t{});
  } else if (width == 4) {
    f(uint32_t{});
  } else if (width == 2) {
    f(uint16_t{});
  } else {
    f(uint8_t{});
  }
}

// All lanes. A column of a row into shared memory, where TMA cannot.
MOELA_DEVICE void ep_load_column(const EpColumn& c, int64_t row, SmemAddr to) {
  const uint8_t* from = c.data + row * c.stride;
  ep_with_width(ep_width(c), [&](auto zero) {
    using T = decltype(zero);
    for (auto b = static_cast<uint32_t>(lane() * sizeof(T)); b < c.bytes; b += 32 * sizeof(T))
      sts(to + b, ldg_nc(reinterpret_cast<const T*>(from + b)));
  });
}

// And back.
MOELA_DEVICE void ep_store_column(const EpColumn& c, int64_t row, SmemAddr from) {
  uint8_t* to = c.data + row * c.stride;
  ep_with_width(ep_width(c), [&](auto zero) {
    using T = decltype(zero);
    for (auto b = static_cast<uint32_t>(lane() * sizeof(T)); b < c.bytes; b += 32 * sizeof(T))
      stg(reinterpret_cast<T*>(to + b), lds<T>(from + b));
  });
}

MOELA_DEVICE void ep_clear_column(const EpColumn& c, int64_t row) {
  uint8_t* to = c.data + row * c.stride;
  ep_with_width(ep_width(c), [&](auto zero) {
    using T = decltype(zero);
    for (auto b = static_cast<uint32_t>(lane() * sizeof(T)); b < c.bytes; b += 32 * sizeof(T))
      stg(reinterpret_cast<T*>(to + b), zero);
  });
}

}  // namespace moela::cuda::sm90
