// What wgmma computes, for operands and descriptors that judge.py takes from the golden data. Register i of
// thread t of the accumulator is dumped at out[t * N/2 + i].
#pragma once

#include <sstream>

#include "cuda/hopper/hopper.h"
#include "device.h"

namespace conform {

using namespace moela::cuda::sm90;

enum class MmaInput { kE4m3, kBFloat16, kFloat16 };

constexpr uint32_t kMmaB = 65536, kMmaBarrier = kMmaB + 65536, kMmaSmem = kMmaBarrier + 8;

struct MmaParams {
  const uint8_t *a, *b;         // images of shared memory; a: or register words [step][thread][4]
  uint32_t a_bytes, b_bytes;    // a_bytes 0: A comes from registers
  const uint64_t* descriptors;  // [2][steps]: a, then b, for tiles at address 0
  int steps;
  float* out;
};

template <MmaInput kInput, bool kTransposeA, bool kTransposeB, bool kRegisters, int kN>
MOELA_DEVICE void multiply(Acc<kN>& acc, const AFragment& fragment, uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (kRegisters) {
    if constexpr (kInput == MmaInput::kE4m3) wgmma_e4m3_rs(acc, fragment, b, accumulate);
    if constexpr (kInput == MmaInput::kBFloat16) wgmma_bf16_rs<kTransposeB>(acc, fragment, b, accumulate);
    if constexpr (kInput == MmaInput::kFloat16) wgmma_f16_rs<kTransposeB>(acc, fragment, b, accumulate);
  } else {
    if constexpr (kInput == MmaInput::kE4m3) wgmma_e4m3(acc, a, b, accumulate);
    if constexpr (kInput == MmaInput::kBFloat16) wgmma_bf16<kTransposeA, kTransposeB>(acc, a, b, accumulate);
    if constexpr (kInput == MmaInput::kFloat16) wgmma_f16<kTransposeA, kTransposeB>(acc, a, b, accumulate);
  }
}

template <MmaInput kInput, bool kTransposeA, bool kTransposeB, bool kRegisters, int kN>
MOELA_KERNEL(128)
mma_kernel(MOELA_PARAM MmaParams p) {
  const SmemAddr smem = smem_base(), barrier = smem + kMmaBarrier;
  if (tid() == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  sync_block();
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier, p.a_bytes + p.b_bytes);
    if (p.a_bytes > 0) bulk_load(smem, p.a, p.a_bytes, barrier);
    bulk_load(smem + kMmaB, p.b, p.b_bytes, barrier);
  }
  mbarrier_wait(barrier, 0);
  Acc<kN> acc;
  AFragment fragment;
  for (int step = 0; step < p.steps; ++step) {
    if constexpr (kRegisters) {
      const auto words = ldg(reinterpret_cast<const Vec4*>(p.a) + step * 128 + tid());
      fragment.set(0, words.x);
      fragment.set(1, words.y);
      fragment.set(2, words.z);
      fragment.set(3, words.w);
    }
    const uint64_t a = ldg(p.descriptors + step) + (smem >> 4);
    const uint64_t b = ldg(p.descriptors + p.steps + step) + ((smem + kMmaB) >> 4);
    if constexpr (kRegisters) {
      wgmma_fence(acc, fragment);
    } else {
      wgmma_fence(acc);
    }
    multiply<kInput, kTransposeA, kTransposeB, kRegisters>(acc, fragment, a, b, step > 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  }
  MOELA_UNROLL
  for (int i = 0; i < kN / 2; ++i) stg(p.out + tid() * (kN / 2) + i, acc.get(i));
}

struct MmaCase {
  std::string name, input;
  int n, transpose_a, transpose_b, registers, steps;
};

template <MmaInput kInput, bool kTransposeA, bool kTransposeB, bool kRegisters, int kN>
void launch_mma(const Device& device, const MmaParams& p) {
  device.launch({.grid = 1, .block = 128, .smem_bytes = kMmaSmem},
                &mma_kernel<kInput, kTransposeA, kTransposeB, kRegisters, kN>, p);
}

// Every N for K-major operands.
template <MmaInput kInput, bool kRegisters, int kN = 8>
void launch_k_major(const Device& device, const MmaParams& p, int n) {
  if (n == kN) launch_mma<kInput, false, false, kRegisters, kN>(device, p);
  if constexpr (kN < 256) launch_k_major<kInput, kRegisters, kN + 8>(device, p, n);
}

// A few N for MN-major operands, and for float16, whose instructions come from the same macro as bfloat16's.
template <MmaInput kInput, bool kTransposeA, bool kTransposeB, bool kRegisters>
void launch_some_n(const Device& device, const MmaParams& p, int n) {
  if (n == 64) launch_mma<kInput, kTransposeA, kTransposeB, kRegisters, 64>(device, p);
  if (n == 128) launch_mma<kInput, kTransposeA, kTransposeB, kRegisters, 128>(device, p);
  if (n == 256) launch_mma<kInput, kTransposeA, kTransposeB, kRegisters, 256>(device, p);
}

template <MmaInput kInput, bool kRegisters>
void launch_k_major_16_bit(const Device& device, const MmaParams& p, int n) {
  if constexpr (kInput == MmaInput::kFloat16) {
    launch_some_n<kInput, false, false, kRegisters>(device, p, n);
  } else {
    launch_k_major<kInput, kRegisters>(device, p, n);
  }
}

template <MmaInput kInput>
void launch_16_bit(const Device& device, const MmaCase& c, const MmaParams& p) {
  if (c.registers) {
    if (c.transpose_b) {
      launch_some_n<kInput, false, true, true>(device, p, c.n);
    } else {
      launch_k_major_16_bit<kInput, true>(device, p, c.n);
    }
  } else if (c.transpose_a && c.transpose_b) {
    launch_some_n<kInput, true, true, false>(device, p, c.n);
  } else if (c.transpose_a) {
    launch_some_n<kInput, true, false, false>(device, p, c.n);
  } else if (c.transpose_b) {
    launch_some_n<kInput, false, true, false>(device, p, c.n);
  } else {
    launch_k_major_16_bit<kInput, false>(device, p, c.n);
  }
}

inline void run_mma(const Device& device) {
  const std::vector<char> text = device.input<char>("mma.txt");
  std::istringstream lines(std::string(text.begin(), text.end()));
  auto* out = static_cast<float*>(device.allocate(64 * 256 * 4));
  for (MmaCase c;
       lines >> c.name >> c.input >> c.n >> c.transpose_a >> c.transpose_b >> c.registers >> c.steps;) {
    const auto a = device.input<uint8_t>(c.name + ".a"), b = device.input<uint8_t>(c.name + ".b");
    const MmaParams p = {.a = device.upload(a),
                         .b = device.upload(b),
                         .a_bytes = c.registers ? 0 : static_cast<uint32_t>(a.size()),
                         .b_bytes = static_cast<uint32_t>(b.size()),
                         .descriptors = device.upload(device.input<uint64_t>(c.name + ".descriptors")),
                         .steps = c.steps,
                         .out = out};
    if (c.input == "bf16") {
      launch_16_bit<MmaInput::kBFloat16>(device, c, p);
    } else if (c.input == "f16") {
      launch_16_bit<MmaInput::kFloat16>(device, c, p);
    } else if (c.registers) {
      launch_k_major<MmaInput::kE4m3, true>(device, p, c.n);
    } else {
      launch_k_major<MmaInput::kE4m3, false>(device, p, c.n);
    }
    device.dump(c.name, out, static_cast<size_t>(c.n) * 64 * 4);
  }
}

}  // namespace conform
