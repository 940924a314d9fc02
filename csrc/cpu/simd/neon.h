// NEON of ARMv8-A: 4 lanes. The comments in avx512.h hold here too.
#pragma once

#include <arm_neon.h>

namespace {

class ExactSubnormals {
 public:
  ExactSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ & ~(uint64_t{1} << 24)));  // FZ off
  }
  ~ExactSubnormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
  ExactSubnormals(const ExactSubnormals&) = delete;
  ExactSubnormals& operator=(const ExactSubnormals&) = delete;

 private:
  uint64_t saved_;
};
MOELA_INLINE void stream(char* to, const char* from, int64_t n) { __builtin_memcpy(to, from, n); }
MOELA_INLINE void end_stream() {}
MOELA_INLINE void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
MOELA_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

constexpr int kLanes = 4;
using F = float32x4_t;
using I = uint32x4_t;

MOELA_INLINE F zero() { return vdupq_n_f32(0.f); }
MOELA_INLINE F set1(float x) { return vdupq_n_f32(x); }
MOELA_INLINE F load(const float* p) { return vld1q_f32(p); }
MOELA_INLINE void store(float* p, F x) { vst1q_f32(p, x); }
MOELA_INLINE F add(F a, F b) { return vaddq_f32(a, b); }
MOELA_INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
MOELA_INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
MOELA_INLINE F larger(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
MOELA_INLINE uint32_t not_below(F x, F least) {
  const I bits = {1, 2, 4, 8};
  return vaddvq_u32(vbicq_u32(bits, vcltq_f32(x, least)));
}
MOELA_INLINE void pin(F& x) { asm("" : "+w"(x)); }

MOELA_INLINE I zero_bytes() { return vdupq_n_u32(0); }
MOELA_INLINE I note_nan(I seen, I codes) {
  const uint8x16_t c = vreinterpretq_u8_u32(codes);
  return vreinterpretq_u32_u8(vmaxq_u8(vreinterpretq_u8_u32(seen), vaddq_u8(c, c)));
}
MOELA_INLINE uint32_t nan_lanes(I seen) {
  const uint8x16_t bytes = vceqq_u8(vreinterpretq_u8_u32(seen), vdupq_n_u8(0xFE));
  const uint32x4_t words = vreinterpretq_u32_u8(bytes);
  uint32_t lanes = 0;
  lanes |= (vgetq_lane_u32(words, 0) != 0) << 0 | (vgetq_lane_u32(words, 1) != 0) << 1;
  lanes |= (vgetq_lane_u32(words, 2) != 0) << 2 | (vgetq_lane_u32(words, 3) != 0) << 3;
  return lanes;
}
MOELA_INLINE I load_words(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
MOELA_INLINE void load_quads(const uint8_t* p, int64_t ld, I q[4]) {
  const I r0 = vreinterpretq_u32_u8(vld1q_u8(p)), r1 = vreinterpretq_u32_u8(vld1q_u8(p + ld));
  const I r2 = vreinterpretq_u32_u8(vld1q_u8(p + 2 * ld)), r3 = vreinterpretq_u32_u8(vld1q_u8(p + 3 * ld));
  const uint32x4x2_t ab = vtrnq_u32(r0, r1), cd = vtrnq_u32(r2, r3);
  q[0] = vcombine_u32(vget_low_u32(ab.val[0]), vget_low_u32(cd.val[0]));
  q[1] = vcombine_u32(vget_low_u32(ab.val[1]), vget_low_u32(cd.val[1]));
  q[2] = vcombine_u32(vget_high_u32(ab.val[0]), vget_high_u32(cd.val[0]));
  q[3] = vcombine_u32(vget_high_u32(ab.val[1]), vget_high_u32(cd.val[1]));
}
#define shift_left16(x, n) vreinterpretq_u32_u16(vshlq_n_u16(vreinterpretq_u16_u32(x), n))
#define shift_left32(x, n) vshlq_n_u32(x, n)
#define shift_right32(x, n) vshrq_n_u32(x, n)
#define shift_right_signed16(x, n) vreinterpretq_u32_s16(vshrq_n_s16(vreinterpretq_s16_u32(x), n))
MOELA_INLINE F mask_bits(I x, uint32_t bits) {
  return vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(bits)));
}
MOELA_INLINE F from_low_halves(I x) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(x))); }
MOELA_INLINE I load_halves(const uint16_t* p) { return vmovl_u16(vld1_u16(p)); }

MOELA_INLINE void add_chains(const float* chains, float* out) {
  for (int i = 0; i < 4; ++i, chains += 16) {
    const F x = add(add(load(chains), load(chains + 8)), add(load(chains + 4), load(chains + 12)));
    const float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    out[i] = vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
  }
}

}  // namespace
