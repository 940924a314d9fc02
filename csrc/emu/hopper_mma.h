// wgmma and accumulators. See cuda/hopper/ptx/wgmma.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::Where;

// Knows whether the tensor core owns it: get and set are errors until a wait gives it back.
template <int kN>
class Acc {
 public:
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256, "wgmma has N = 8..256 in steps of 8");
  Acc() = default;
  Acc(const Acc&) = delete;
  Acc& operator=(const Acc&) = delete;
  ~Acc() { emu::drop_accumulator(state); }

  float get(int i, Where where = Where::current()) const {
    emu::touch_accumulator(state, false, where);
    return d[i];
  }
  void set(int i, float x, Where where = Where::current()) {
    emu::touch_accumulator(state, true, where);
    d[i] = x;
  }

  float d[kN / 2] = {};
  mutable emu::AccumulatorState state;
};

// Knows whether a wgmma may still be reading it.
class AFragment {
 public:
  AFragment() = default;
  AFragment(const AFragment&) = delete;
  AFragment& operator=(const AFragment&) = delete;
  ~AFragment() { emu::drop_fragment(state); }

  uint32_t get(int i, Where where = Where::current()) const {
    emu::touch_fragment(state, i, false, where);
    return r[i];
  }
  void set(int i, uint32_t x, Where where = Where::current()) {
    emu::touch_fragment(state, i, true, where);
    r[i] = x;
  }

  uint32_t r[4] = {};
  mutable emu::FragmentState state;
};

template <class... Registers>
void wgmma_fence(Registers&...) {
  emu::wgmma_fence();
}
inline void wgmma_commit(Where where = Where::current()) { emu::wgmma_commit(where); }

// Gives back what it waits for, whatever the arguments: those only tell the compiler what is touched next.
template <int kPending, class... Registers>
void wgmma_wait(Registers&...) {
  emu::wgmma_wait(kPending, Where::current());
}

template <int kN>
void wgmma_e4m3(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate, Where where = Where::current()) {
  emu::wgmma(acc.state, acc.d, {emu::MmaType::kE4m3, kN, false, false, nullptr, nullptr, a, b, accumulate},
             where);
}

template <int kN>
void wgmma_e4m3_rs(Acc<kN>& acc, const AFragment& a, uint64_t b, bool accumulate,
                   Where where = Where::current()) {
  emu::wgmma(acc.state, acc.d, {emu::MmaType::kE4m3, kN, false, false, a.r, &a.state, 0, b, accumulate},
             where);
}

template <bool kTransposeA, bool kTransposeB, int kN>
void wgmma_bf16(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate, Where where = Where::current()) {
  emu::wgmma(acc.state, acc.d,
             {emu::MmaType::kBFloat16, kN, kTransposeA, kTransposeB, nullptr, nullptr, a, b, accumulate},
             where);
}

template <bool kTransposeB, int kN>
void wgmma_bf16_rs(Acc<kN>& acc, const AFragment& a, uint64_t b, bool accumulate,
                   Where where = Where::current()) {
  emu::wgmma(acc.state, acc.d,
             {emu::MmaType::kBFloat16, kN, false, kTransposeB, a.r, &a.state, 0, b, accumulate}, where);
}

template <bool kTransposeA, bool kTransposeB, int kN>
void wgmma_f16(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate, Where where = Where::current()) {
  emu::wgmma(acc.state, acc.d,
             {emu::MmaType::kFloat16, kN, kTransposeA, kTransposeB, nullptr, nullptr, a, b, accumulate},
             where);
}

template <bool kTransposeB, int kN>
void wgmma_f16_rs(Acc<kN>& acc, const AFragment& a, uint64_t b, bool accumulate,
                  Where where = Where::current()) {
  emu::wgmma(acc.state, acc.d,
             {emu::MmaType::kFloat16, kN, false, kTransposeB, a.r, &a.state, 0, b, accumulate}, where);
}

}  // namespace moela::cuda::sm90
