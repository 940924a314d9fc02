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
// Copies n bytes past the caches: the lines that are written are not read before. end_stream() makes them
// visible to other threads.
MOELA_INLINE void stream(char* to, const char* from, int64_t n) {
  const int64_t to_alignment = -reinterpret_cast<intptr_t>(to) & 15;
  const int64_t head = n < to_alignment ? n : to_alignment, body = (n - head) / 16 * 16;
  __builtin_memcpy(to, from, head);
  to += head, from += head;
  for (int64_t i = 0; i < body; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  __builtin_memcpy(to + body, from + body, n - head - body);
}
MOELA_INLINE void end_stream() { _mm_sfence(); }

MOELA_INLINE void prefetch_l1(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
MOELA_INLINE void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
