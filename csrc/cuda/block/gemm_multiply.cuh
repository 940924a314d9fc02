// The multiplying side of an FP8 GEMM: sums of steps, each a tensor-core sum times its scale factors.
#pragma once

#include "cuda/block/gemm_float.cuh"
#include "cuda/block/gemm_params.cuh"
#include "cuda/block/gemm_ring.cuh"

namespace moela::cuda::sm90 {

// Where a thread's accumulator elements are. Register i holds row row0 + 8 * (i / 2 % 2) of the left operand
// and row i / 4 * 8 + col0 + i % 2 of the right one.
MOELA_DEVICE int row0() { return warp() * 16 + lane() / 4; }
MOELA_DEVICE int col0() { return lane() % 4 * 2; }

// Scale factors of one step for the elements of one thread: of its two rows if rows are tokens, else of its
// kRight / 4 columns; what is not a token of the tile has none.
template <class C>
struct StepScales {
  static constexpr int kCount = C::kSwaps ? C::kRight / 4 : 2;
  float sf[kCount];

  MOELA_DEVICE void load(const GemmParams& p, const GemmTile& tile, int step) {
    const GemmArgs& g = p.args;
    // A warpgroup of weights lies within one scale factor; so does a tile of the right operand, which may
    // lie beyond N if its cluster does not.
    const int first = C::kSwaps ? tile.left + warp() / 4 * 64 : tile.right;
    const int n = first < g.N ? first : g.N - 1;
    const float sf_b =
        load_float(g.sf_b, g.sf_b_dtype,
                   tile.expert * g.sf_b_stride_e + n / 128 * g.sf_b_stride_n + step * g.sf_b_stride_k);
    const float* sf_a = g.sf_a + tile.expert * g.sf_a_stride_e + step * g.sf_a_stride_k;
    MOELA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int m = C::kSwaps ? tile.right + i / 2 * 8 + col0() + i % 2 : tile.left + row0() + 8 * i;
      sf[i] = m < tile.end ? ldg(sf_a + m * g.sf_a_stride_m) * sf_b : 0.f;
    }
  }
  // The one of register i.
  MOELA_DEVICE float of(int i) const { return sf[C::kSwaps ? i / 4 * 2 + i % 2 : i / 2 % 2]; }
};

// The two steps that a warpgroup has under way: one is added up while the tensor core works on the other.
template <class C>
struct Step {
  Acc<C::kRight> acc;
  StepScales<C> scales;
};

template <class C>
MOELA_DEVICE void begin_step(const GemmParams& p, const GemmTile& tile, int index, const Position<C>& at,
                             Step<C>& step) {
  step.scales.load(p, tile, index);  // before the wait: the loads overlap it
  mbarrier_wait(full<C>(at.stage), at.parity);
  const auto s = static_cast<uint32_t>(at.stage);
  const SmemAddr rows =
      smem_base() + C::kSmemLeft + s * C::kLeftBytes + static_cast<uint32_t>(warp() / 4) * 64 * C::kStep;
  const uint64_t x = make_descriptor(rows, 0, 1024, OperandLayout::k128B);
  const uint64_t y =
      make_descriptor(smem_base() + C::kSmemRight + s * C::kRightBytes, 0, 1024, OperandLayout::k128B);
  wgmma_fence(step.acc);
  MOELA_UNROLL
  for (uint32_t k = 0; k < C::kStep / 32; ++k)
    wgmma_e4m3(step.acc, advance_descriptor(x, k * 32), advance_descriptor(y, k * 32), k > 0);
  wgmma_commit();
}

// Adds the step to the sums and gives its stage back. kPending: the steps that may still be under way.
template <class C, int kPending>
MOELA_DEVICE void end_step(Step<C>& step, int stage, float (&sums)[C::kRight / 2]) {
  wgmma_wait<kPending>(step.acc);
  give_back<C>(stage);
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i) sums[i] += step.scales.of(i) * step.acc.get(i);
}

// Adds the steps to the sums, in order. There is at least one.
template <class C>
MOELA_DEVICE void multiply_steps(const GemmParams& p, const GemmTile& tile, Steps steps, Position<C>& at,
                                 float (&sums)[C::kRight / 2]) {
  Step<C> even, odd;
  const auto begin = [&](int index, Step<C>& step) {
    begin_step<C>(p, tile, index, at, step);
    at.advance();
  };
  // No branch in the loop: ptxas keeps products of two steps under way only where it sees which registers
  // each has (C7514 otherwise).
  begin(steps.begin, even);
  int index = steps.begin + 1;
  for (; index + 1 < steps.end; index += 2) {
    begin(index, odd);
    end_step<C, 1>(even, at.stage_before(2), sums);
    begin(index + 1, even);
    end_step<C, 1>(odd, at.stage_before(2), sums);
  }
  if (index < steps.end) {
    begin(index, odd);
    end_step<C, 1>(even, at.stage_before(2), sums);
    end_step<C, 0>(odd, at.stage_before(1), sums);
  } else {
    end_step<C, 0>(even, at.stage_before(1), sums);
  }
}

// What this block sums of a tile: its split of a shared sum, or all splits in order.
template <class C>
MOELA_DEVICE void multiply_tile(const GemmParams& p, const GemmTile& tile, Position<C>& at,
                                float (&sums)[C::kRight / 2]) {
  if constexpr (C::kSplits && !C::kSharesSum) {
    for (int split = 0; split < p.splits; ++split) {
      float part[C::kRight / 2] = {};
      multiply_steps<C>(p, tile, steps_of_split(p, split), at, part);
      MOELA_UNROLL
      for (int i = 0; i < C::kRight / 2; ++i) sums[i] += part[i];
    }
  } else {
    multiply_steps<C>(p, tile, steps_of_block<C>(p), at, sums);
  }
}

}  // namespace moela::cuda::sm90
