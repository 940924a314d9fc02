// Tensor-core products of a warpgroup: D[64, N] += A[64, K] x B[N, K]^T with float32 accumulators.
// PTX ISA "Asynchronous warpgroup level matrix instructions". K is 32 for e4m3 and 16 for 16-bit types.
//
// wgmma_fence() before the first wgmma and after any other access to the registers; wgmma_commit();
// wgmma_wait() before the accumulator, or the fragment of A, is touched again.
#pragma once

#include "cuda/hopper/ptx/wgmma_registers.h"
#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// The [64, N] accumulator of a warpgroup, N/2 registers per thread. Register i of thread t holds row
// t/32*16 + t%32/4 + 8*(i/2%2), column i/4*8 + 2*(t%4) + i%2. Indices are compile-time constants after
// unrolling: otherwise the array goes to local memory.
template <int kN>
struct Acc {
  float d[kN / 2];
  MOELA_DEVICE float get(int i) const { return d[i]; }
  MOELA_DEVICE void set(int i, float x) { d[i] = x; }
};

// What a thread holds of A [64, K] in registers. 16 bits: register r of thread t holds row t/32*16 + t%32/4 +
// 8*(r%2), columns 2*(t%4) + 8*(r/2) and the next; 8 bits: twice the columns.
struct AFragment {
  uint32_t r[4];
  MOELA_DEVICE uint32_t get(int i) const { return r[i]; }
  MOELA_DEVICE void set(int i, uint32_t x) { r[i] = x; }
};

// PTX ISA "wgmma.commit_group".
MOELA_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Ties registers to a place in the program: the compiler may not move their accesses over the fence or wait.
template <int kN>
MOELA_DEVICE void pin(Acc<kN>& acc) {
  MOELA_UNROLL
  for (int i = 0; i < kN / 2; ++i) asm volatile("" : "+f"(acc.d[i])::"memory");
}

MOELA_DEVICE void pin(AFragment& a) {
  MOELA_UNROLL
  for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a.r[i])::"memory");
}

// PTX ISA "wgmma.fence". Takes the accumulators and fragments that carry a value into the next wgmma: their
// registers are then settled before the fence, not after it.
template <class... Registers>
MOELA_DEVICE void wgmma_fence(Registers&... registers) {
  (pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// PTX ISA "wgmma.wait_group". Until at most kPending groups are under way; takes the accumulators that are
// then read and the fragments that are then changed.
template <int kPending, class... Registers>
MOELA_DEVICE void wgmma_wait(Registers&... registers) {
  (pin(registers), ...);
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (pin(registers), ...);
}

template <int kN>
struct Wgmma;

// `accumulate` false overwrites D. MN-major operands (kTranspose) exist for 16-bit types in shared memory
// only.
#define MOELA_DEFINE_WGMMA(N, R, p0, p1, p2, p3, p4, p5, p6)                                              \
  template <>                                                                                             \
  struct Wgmma<N> {                                                                                       \
    MOELA_DEVICE static void e4m3(float (&d)[R], uint64_t a, uint64_t b, int accumulate) {                \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2                                               \
                   ", 0;\n"                                                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" MOELA_D##R                \
                   "}, %" #p0 ", %" #p1 ", p, 1, 1;\n}"                                                   \
                   : MOELA_R##R                                                                           \
                   : "l"(a), "l"(b), "r"(accumulate));                                                    \
    }                                                                                                     \
    MOELA_DEVICE static void e4m3_rs(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int accumulate) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5                                               \
                   ", 0;\n"                                                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" MOELA_D##R                \
                   "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4 ", p, 1, 1;\n}"                   \
                   : MOELA_R##R                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                \
    }                                                                                                     \
    MOELA_DEFINE_WGMMA_16(N, R, bf16, p0, p1, p2, p3, p4, p5, p6)                                         \
    MOELA_DEFINE_WGMMA_16(N, R, f16, p0, p1, p2, p3, p4, p5, p6)                                          \
  };

#define MOELA_DEFINE_WGMMA_16(N, R, type, p0, p1, p2, p3, p4, p5, p6)                                      \
  template <int kTransposeA, int kTransposeB>                                                              \
  MOELA_DEVICE static void type(float (&d)[R], uint64_t a, uint64_t b, int accumulate) {                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2                                                  \
                 ", 0;\n"                                                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type "." #type " {" MOELA_D##R         \
                 "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";\n}"                                  \
                 : MOELA_R##R                                                                              \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposeA), "n"(kTransposeB));                   \
  }                                                                                                        \
  template <int kTransposeB>                                                                               \
  MOELA_DEVICE static void type##_rs(float (&d)[R], const uint32_t (&a)[4], uint64_t b, int accumulate) {  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5                                                  \
                 ", 0;\n"                                                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #type "." #type " {" MOELA_D##R         \
                 "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4 ", p, 1, 1, %" #p6 ";\n}"            \
                 : MOELA_R##R                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposeB)); \
  }

MOELA_FOR_EACH_N(MOELA_DEFINE_WGMMA)

// PTX ISA "wgmma.mma_async". e4m3, K-major, A in shared memory.
template <int kN>
MOELA_DEVICE void wgmma_e4m3(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate) {
  Wgmma<kN>::e4m3(acc.d, a, b, accumulate);
}

// PTX ISA "wgmma.mma_async". e4m3, K-major, A in registers.
template <int kN>
MOELA_DEVICE void wgmma_e4m3_rs(Acc<kN>& acc, const AFragment& a, uint64_t b, bool accumulate) {
  Wgmma<kN>::e4m3_rs(acc.d, a.r, b, accumulate);
}

// PTX ISA "wgmma.mma_async". bfloat16, A in shared memory.
template <bool kTransposeA, bool kTransposeB, int kN>
MOELA_DEVICE void wgmma_bf16(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate) {
  Wgmma<kN>::template bf16<kTransposeA, kTransposeB>(acc.d, a, b, accumulate);
}

// PTX ISA "wgmma.mma_async". bfloat16, A in registers.
template <bool kTransposeB, int kN>
MOELA_DEVICE void wgmma_bf16_rs(Acc<kN>& acc, const AFragment& a, uint64_t b, bool accumulate) {
  Wgmma<kN>::template bf16_rs<kTransposeB>(acc.d, a.r, b, accumulate);
}

// PTX ISA "wgmma.mma_async". float16, A in shared memory.
template <bool kTransposeA, bool kTransposeB, int kN>
MOELA_DEVICE void wgmma_f16(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate) {
  Wgmma<kN>::template f16<kTransposeA, kTransposeB>(acc.d, a, b, accumulate);
}

// PTX ISA "wgmma.mma_async". float16, A in registers.
template <bool kTransposeB, int kN>
MOELA_DEVICE void wgmma_f16_rs(Acc<kN>& acc, const AFragment& a, uint64_t b, bool accumulate) {
  Wgmma<kN>::template f16_rs<kTransposeB>(acc.d, a.r, b, accumulate);
}

}  // namespace moela::cuda::sm90
