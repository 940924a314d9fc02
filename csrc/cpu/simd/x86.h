// What AVX2 and AVX512 share.
#pragma once

#include <immintrin.h>

namespace {

// Kernels multiply by subnormal numbers on purpose (see decode_tiny); torch.set_flush_denormal must not
// matter.
class ExactSubnormals {
 public:
  ExactSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }  // FTZ and DAZ off
  ~ExactSubnormals() { _mm_setcsr(saved_); }
  ExactSubnormals(const ExactSubnormals&) = delete;
  ExactSubnormals& operator=(const ExactSubnormals&) = delete;

 private:
  unsigned saved_;
};
MOELA_INLINE void prefetch_l1(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
MOELA_INLINE void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
