// Shared memory, of this block and of the others of the cluster. T has 1, 2, 4, 8 or 16 bytes.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "ld".
template <class T>
MOELA_DEVICE T lds(SmemAddr from) {
  if constexpr (sizeof(T) == 1) {
    uint16_t value;
    asm volatile("ld.shared.u8 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
    return bits_as<T>(static_cast<uint8_t>(value));
  } else if constexpr (sizeof(T) == 2) {
    uint16_t value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t value;
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(value) : "r"(from) : "memory");
    return bits_as<T>(value);
  } else {
    Vec4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from)
                 : "memory");
    return bits_as<T>(value);
  }
}

// PTX ISA "st".
template <class T>
MOELA_DEVICE void sts(SmemAddr to, T value) {
  if constexpr (sizeof(T) == 1) {
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "h"(static_cast<uint16_t>(bits_as<uint8_t>(value)))
                 : "memory");
  } else if constexpr (sizeof(T) == 2) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(bits_as<uint16_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(bits_as<uint32_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.shared.u64 [%0], %1;" ::"r"(to), "l"(bits_as<uint64_t>(value)) : "memory");
  } else {
    const Vec4 v = bits_as<Vec4>(value);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

// PTX ISA "mapa". The address of the same byte in another block of the cluster.
MOELA_DEVICE SmemAddr mapa(SmemAddr address, int rank) {
  SmemAddr mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// PTX ISA "ld". At an address from mapa().
template <class T>
MOELA_DEVICE T lds_cluster(SmemAddr from) {
  if constexpr (sizeof(T) == 1) {
    uint16_t value;
    asm volatile("ld.shared::cluster.u8 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
    return bits_as<T>(static_cast<uint8_t>(value));
  } else if constexpr (sizeof(T) == 2) {
    uint16_t value;
    asm volatile("ld.shared::cluster.u16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t value;
    asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(value) : "r"(from) : "memory");
    return bits_as<T>(value);
  } else {
    Vec4 value;
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from)
                 : "memory");
    return bits_as<T>(value);
  }
}

// PTX ISA "st". At an address from mapa().
template <class T>
MOELA_DEVICE void sts_cluster(SmemAddr to, T value) {
  if constexpr (sizeof(T) == 1) {
    asm volatile("st.shared::cluster.u8 [%0], %1;" ::"r"(to),
                 "h"(static_cast<uint16_t>(bits_as<uint8_t>(value)))
                 : "memory");
  } else if constexpr (sizeof(T) == 2) {
    asm volatile("st.shared::cluster.u16 [%0], %1;" ::"r"(to), "h"(bits_as<uint16_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(bits_as<uint32_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(to), "l"(bits_as<uint64_t>(value)) : "memory");
  } else {
    const Vec4 v = bits_as<Vec4>(value);
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
  }
}

// PTX ISA "st.async". Stores 4 bytes in another block and completes them at an mbarrier there; both addresses
// come from mapa().
MOELA_DEVICE void st_async(SmemAddr to, uint32_t value, SmemAddr barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
               "r"(value), "r"(barrier)
               : "memory");
}

}  // namespace moela::cuda::sm90
