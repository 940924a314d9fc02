// Global memory and flags. T has 1, 2, 4, 8 or 16 bytes; flags have 4 or 8.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "ld".
template <class T>
MOELA_DEVICE T ldg(const T* from) {
  if constexpr (sizeof(T) == 1) {
    uint16_t value;
    asm volatile("ld.global.u8 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
    return bits_as<T>(static_cast<uint8_t>(value));
  } else if constexpr (sizeof(T) == 2) {
    uint16_t value;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t value;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t value;
    asm volatile("ld.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return bits_as<T>(value);
  } else {
    Vec4 value;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return bits_as<T>(value);
  }
}

// PTX ISA "ld.global.nc". Only for what no kernel writes while this one runs: the path is not coherent.
template <class T>
MOELA_DEVICE T ldg_nc(const T* from) {
  if constexpr (sizeof(T) == 1) {
    uint16_t value;
    asm("ld.global.nc.u8 %0, [%1];" : "=h"(value) : "l"(from));
    return bits_as<T>(static_cast<uint8_t>(value));
  } else if constexpr (sizeof(T) == 2) {
    uint16_t value;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(from));
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t value;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(from));
    return bits_as<T>(value);
  } else if constexpr (sizeof(T) == 8) {
    uint64_t value;
    asm("ld.global.nc.u64 %0, [%1];" : "=l"(value) : "l"(from));
    return bits_as<T>(value);
  } else {
    Vec4 value;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(from));
    return bits_as<T>(value);
  }
}

// PTX ISA "st".
template <class T>
MOELA_DEVICE void stg(T* to, T value) {
  if constexpr (sizeof(T) == 1) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(to), "h"(static_cast<uint16_t>(bits_as<uint8_t>(value)))
                 : "memory");
  } else if constexpr (sizeof(T) == 2) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(bits_as<uint16_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(bits_as<uint32_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.global.u64 [%0], %1;" ::"l"(to), "l"(bits_as<uint64_t>(value)) : "memory");
  } else {
    const Vec4 v = bits_as<Vec4>(value);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

// PTX ISA "ld.acquire".
template <Scope kScope, class T>
MOELA_DEVICE T ld_acquire(const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a flag has 4 or 8 bytes");
  T value;
  if constexpr (kScope == Scope::kGpu && sizeof(T) == 4) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  } else if constexpr (kScope == Scope::kGpu && sizeof(T) == 8) {
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 4) {
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 8) {
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  }
  return value;
}

// PTX ISA "ld.relaxed". Orders nothing.
template <Scope kScope, class T>
MOELA_DEVICE T ld_relaxed(const T* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a flag has 4 or 8 bytes");
  T value;
  if constexpr (kScope == Scope::kGpu && sizeof(T) == 4) {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  } else if constexpr (kScope == Scope::kGpu && sizeof(T) == 8) {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 4) {
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 8) {
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  }
  return value;
}

// PTX ISA "st.release".
template <Scope kScope, class T>
MOELA_DEVICE void st_release(T* to, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a flag has 4 or 8 bytes");
  if constexpr (kScope == Scope::kGpu && sizeof(T) == 4) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  } else if constexpr (kScope == Scope::kGpu && sizeof(T) == 8) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 4) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 8) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  }
}

// PTX ISA "st.relaxed". Orders nothing.
template <Scope kScope, class T>
MOELA_DEVICE void st_relaxed(T* to, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a flag has 4 or 8 bytes");
  if constexpr (kScope == Scope::kGpu && sizeof(T) == 4) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  } else if constexpr (kScope == Scope::kGpu && sizeof(T) == 8) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 4) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 8) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  }
}

// PTX ISA "fence.acq_rel". What this thread has done and seen before comes before its relaxed flag accesses
// after it; what others have released to its relaxed loads before comes before what it does after it.
template <Scope kScope>
MOELA_DEVICE void fence_acq_rel() {
  if constexpr (kScope == Scope::kGpu) {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  } else {
    asm volatile("fence.acq_rel.sys;" ::: "memory");
  }
}

// PTX ISA "red.release".
template <Scope kScope, class T>
MOELA_DEVICE void red_add_release(T* to, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a flag has 4 or 8 bytes");
  if constexpr (kScope == Scope::kGpu && sizeof(T) == 4) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  } else if constexpr (kScope == Scope::kGpu && sizeof(T) == 8) {
    asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 4) {
    asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 8) {
    asm volatile("red.release.sys.global.add.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  }
}

// PTX ISA "atom.acq_rel". Returns the old value.
template <Scope kScope, class T>
MOELA_DEVICE T atom_add_acq_rel(T* to, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a flag has 4 or 8 bytes");
  T old;
  if constexpr (kScope == Scope::kGpu && sizeof(T) == 4) {
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(to), "r"(value)
                 : "memory");
  } else if constexpr (kScope == Scope::kGpu && sizeof(T) == 8) {
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;"
                 : "=l"(old)
                 : "l"(to), "l"(value)
                 : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 4) {
    asm volatile("atom.acq_rel.sys.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(to), "r"(value)
                 : "memory");
  } else if constexpr (kScope == Scope::kSys && sizeof(T) == 8) {
    asm volatile("atom.acq_rel.sys.global.add.u64 %0, [%1], %2;"
                 : "=l"(old)
                 : "l"(to), "l"(value)
                 : "memory");
  }
  return old;
}

}  // namespace moela::cuda::sm90
