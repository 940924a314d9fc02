// fp8_gemm on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias. The tensor core takes a left operand of 64 rows per
// warpgroup and a right one of kRight rows: tokens and weights, or, with kSwaps, weights and tokens, for few
// tokens. Bound: the tensor core for many tokens, the DRAM rate of b for few. Grid: persistent; a cluster of
// kCluster blocks owns kCluster neighbouring tiles of the left operand and the same rows of the right one,
// each block loads its share of those and multicasts it. Invariants: a step is 128 columns of K, so it has
// one scale factor per row of a and one for the tile of b (kRight and the rows of a warpgroup divide 128);
// what lies beyond M, N or K is read as zero by TMA and never written. Numerics: per step a tensor-core sum,
// times the scale factors, added in float32; the bias; one rounding.
#pragma once

#include "cuda/fp8_gemm/fp8_gemm.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

struct Fp8GemmParams {
  TensorMap left, right, d;  // d: only if stores_by_tma
  Fp8GemmArgs args;
  int tiles_left, tiles_right;
};

template <bool kSwapsOperands, int kWarpgroups, int kRightRows, int kBlocksPerCluster, int kNumStages>
struct Fp8GemmConfig {
  static constexpr bool kSwaps = kSwapsOperands;
  static constexpr int kMathWarps = 4 * kWarpgroups, kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kLeft = 64 * kWarpgroups, kRight = kRightRows, kCluster = kBlocksPerCluster;
  static constexpr int kStages = kNumStages, kStep = 128;
  static constexpr uint32_t kLeftBytes = kLeft * kStep, kRightBytes = kRight * kStep;
  // smem_left [kStages][kLeft][128], smem_right [kStages][kRight][128], swizzled by 128 bytes; smem_d: per
  // warpgroup [kRight / 64][64][64] of 16 bits, swizzled; then the barriers.
  static constexpr uint32_t kDBytes = kSwaps ? 0 : kLeft * kRight * 2;
  static constexpr uint32_t kSmemLeft = 0, kSmemRight = kSmemLeft + kStages * kLeftBytes,
                            kSmemD = kSmemRight + kStages * kRightBytes, kFull = kSmemD + kDBytes,
                            kEmpty = kFull + kStages * 8, kSmemBytes = kEmpty + kStages * 8;
  static_assert(kSmemBytes <= kMaxSmemBytes, "the stages do not fit a block's shared memory");
  static_assert(kSmemRight % 1024 == 0 && kSmemD % 1024 == 0 && kRightBytes % 1024 == 0,
                "a tile must start on the repeat of its swizzle");
  static_assert(128 % kRight == 0, "a tile must not straddle two scale factors of b");
  static_assert(kRight / kCluster % 8 == 0, "a block's share of a multicast is whole swizzle repeats");
  static_assert(kSwaps || kRight % 64 == 0, "smem_d is made of panels of 64 columns");
};

namespace fp8_gemm {

// A stage of the ring and how often it has been used, as a parity.
template <class C>
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  MOELA_DEVICE void advance() {
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// full[s]: one arrival, of the loading thread, with the bytes of all copies into the stage. Math warps wait.
template <class C>
MOELA_DEVICE SmemAddr full(int stage) {
  return smem_base() + C::kFull + static_cast<uint32_t>(stage) * 8;
}
// empty[s]: one arrival per math warp of the cluster. The loading thread waits: its copies go to all blocks.
template <class C>
MOELA_DEVICE SmemAddr empty(int stage) {
  return smem_base() + C::kEmpty + static_cast<uint32_t>(stage) * 8;
}

template <class C>
MOELA_DEVICE void init_barriers() {
  if (tid() == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      mbarrier_init(full<C>(s), 1);
      mbarrier_init(empty<C>(s), C::kCluster * C::kMathWarps);
    }
    fence_mbarrier_init();
  }
  if constexpr (C::kCluster > 1) {
    cluster_sync();
  } else {
    sync_block();
  }
}

// The tiles of a cluster, one after the other. Clusters side by side in time are kGroup tiles of the left
// operand by some of the right one: their operands stay in L2.
template <class C>
struct Tiles {
  MOELA_DEVICE explicit Tiles(const Fp8GemmParams& p)
      : clusters_left(p.tiles_left / C::kCluster), count(clusters_left * p.tiles_right), at(cluster()) {}
  MOELA_DEVICE bool next(int* left, int* right) {
    constexpr int kGroup = 8;
    if (at >= count) return false;
    const int tiles_right = count / clusters_left, group = at / (kGroup * tiles_right) * kGroup;
    const int height = clusters_left - group < kGroup ? clusters_left - group : kGroup;
    const int in_group = at - group * tiles_right;
    *left = ((group + in_group % height) * C::kCluster + cluster_rank()) * C::kLeft;
    *right = in_group / height * C::kRight;
    at += num_blocks() / C::kCluster;
    return true;
  }
  int clusters_left, count, at;
};

MOELA_DEVICE int num_steps(const Fp8GemmParams& p) { return (p.args.K + 127) / 128; }

// One thread. Keeps the ring full.
template <class C>
MOELA_DEVICE void load_tiles(const Fp8GemmParams& p) {
  tma_prefetch_map(&p.left);
  tma_prefetch_map(&p.right);
  const SmemAddr smem = smem_base();
  Position<C> at;
  Tiles<C> tiles(p);
  for (int left, right; tiles.next(&left, &right);) {
    for (int step = 0; step < num_steps(p); ++step, at.advance()) {
      const auto s = static_cast<uint32_t>(at.stage);
      const SmemAddr to_left = smem + C::kSmemLeft + s * C::kLeftBytes;
      const SmemAddr to_right = smem + C::kSmemRight + s * C::kRightBytes;
      if constexpr (C::kCluster > 1) {
        mbarrier_wait_cluster(empty<C>(at.stage), at.parity ^ 1);
      } else {
        mbarrier_wait(empty<C>(at.stage), at.parity ^ 1);
      }
      mbarrier_arrive_expect_tx(full<C>(at.stage), C::kLeftBytes + C::kRightBytes);
      tma_load_2d(to_left, &p.left, step * C::kStep, left, full<C>(at.stage));
      if constexpr (C::kCluster > 1) {
        constexpr int kShare = C::kRight / C::kCluster;
        tma_load_multicast_2d(to_right + static_cast<uint32_t>(cluster_rank() * kShare * C::kStep), &p.right,
                              step * C::kStep, right + cluster_rank() * kShare, full<C>(at.stage),
                              static_cast<uint16_t>((1 << C::kCluster) - 1));
      } else {
        tma_load_2d(to_right, &p.right, step * C::kStep, right, full<C>(at.stage));
      }
    }
  }
  // The other blocks' warps arrive here to the end, so this block must not exit before them.
  if constexpr (C::kCluster > 1)
    for (int s = 0; s < C::kStages; ++s, at.advance())
      mbarrier_wait_cluster(empty<C>(at.stage), at.parity ^ 1);
}

// A scale factor or an element of the bias as float32.
MOELA_DEVICE float load_float(const void* values, GemmFloat dtype, int64_t index) {
  switch (dtype) {
    case GemmFloat::kFloat32: return ldg(static_cast<const float*>(values) + index);
    case GemmFloat::kBFloat16: return cvt_f32_of_bf16(ldg(static_cast<const uint16_t*>(values) + index));
    case GemmFloat::kFloat16: return cvt_f32_of_f16(ldg(static_cast<const uint16_t*>(values) + index));
    default: {
      const uint32_t code = ldg(static_cast<const uint8_t*>(values) + index);
      return float_of(code == 255 ? 0x7FC00000u : code == 0 ? 0x00400000u : code << 23);
    }
  }
}

// Where a thread's accumulator elements are. Register i holds row row0 + 8 * (i / 2 % 2) of the left operand
// and row i / 4 * 8 + col0 + i % 2 of the right one.
MOELA_DEVICE int row0() { return warp() * 16 + lane() / 4; }
MOELA_DEVICE int col0() { return lane() % 4 * 2; }

// Scale factors of one step for the elements of one thread: of its two rows if rows are tokens, else of its
// kRight / 4 columns; tokens beyond M have none.
template <class C>
struct StepScales {
  static constexpr int kCount = C::kSwaps ? C::kRight / 4 : 2;
  float sf[kCount];

  MOELA_DEVICE void load(const Fp8GemmParams& p, int left, int right, int step) {
    const Fp8GemmArgs& g = p.args;
    // A warpgroup of weights lies within one scale factor; so does a tile of the right operand.
    const int n = C::kSwaps ? left + warp() / 4 * 64 : right;
    const float sf_b = load_float(g.sf_b, g.sf_b_dtype, n / 128 * g.sf_b_stride_n + step * g.sf_b_stride_k);
    MOELA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const int m = C::kSwaps ? right + i / 2 * 8 + col0() + i % 2 : left + row0() + 8 * i;
      sf[i] = m < g.M ? ldg(g.sf_a + m * g.sf_a_stride_m + step * g.sf_a_stride_k) * sf_b : 0.f;
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
MOELA_DEVICE void begin_step(const Fp8GemmParams& p, int left, int right, int index, const Position<C>& at,
                             Step<C>& step) {
  step.scales.load(p, left, right, index);  // before the wait: the loads overlap it
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
  sync_warp();  // the tensor core is done for all lanes before one of them gives the stage back
  if constexpr (C::kCluster > 1) {
    if (lane() < C::kCluster) mbarrier_arrive_remote(mapa(empty<C>(stage), lane()));
  } else {
    if (lane() == 0) mbarrier_arrive(empty<C>(stage));
  }
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i) sums[i] += step.scales.of(i) * step.acc.get(i);
}

template <class C>
MOELA_DEVICE void multiply_tile(const Fp8GemmParams& p, int left, int right, Position<C>& at,
                                float (&sums)[C::kRight / 2]) {
  Step<C> even, odd;
  const int count = num_steps(p);
  int stage = at.stage;  // of the step that ends next
  const auto begin = [&](int index, Step<C>& step) {
    begin_step<C>(p, left, right, index, at, step);
    at.advance();
  };
  const auto next_stage = [&] { stage = stage + 1 == C::kStages ? 0 : stage + 1; };
  // No branch in the loop: ptxas keeps products of two steps under way only where it sees which registers
  // each has (C7514 otherwise).
  begin(0, even);
  int index = 1;
  for (; index + 1 < count; index += 2) {
    begin(index, odd);
    end_step<C, 1>(even, stage, sums);
    next_stage();
    begin(index + 1, even);
    end_step<C, 1>(odd, stage, sums);
    next_stage();
  }
  if (index < count) {
    begin(index, odd);
    end_step<C, 1>(even, stage, sums);
    next_stage();
    end_step<C, 0>(odd, stage, sums);
  } else {
    end_step<C, 0>(even, stage, sums);
  }
}

template <class C>
MOELA_DEVICE void add_bias(const Fp8GemmParams& p, int left, int right, float (&sums)[C::kRight / 2]) {
  const Fp8GemmArgs& g = p.args;
  if (g.bias == nullptr) return;
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i) {
    const int n = C::kSwaps ? left + row0() + 8 * (i / 2 % 2) : right + i / 4 * 8 + col0() + i % 2;
    if (n < g.N) sums[i] += load_float(g.bias, g.bias_dtype, n * g.bias_stride);
  }
}

MOELA_DEVICE void store_element(const Fp8GemmArgs& g, int m, int n, float x) {
  if (m >= g.M || n >= g.N) return;
  const int64_t index = m * g.ldd + n;
  if (g.d_dtype == GemmFloat::kFloat32) {
    stg(static_cast<float*>(g.d) + index, x);
  } else {
    const uint32_t pair = g.d_dtype == GemmFloat::kBFloat16 ? cvt_bf16x2(x, 0.f) : cvt_f16x2(x, 0.f);
    stg(static_cast<uint16_t*>(g.d) + index, static_cast<uint16_t>(pair));
  }
}

// Straight from registers, for outputs that TMA does not take and for swapped tiles, which are small.
template <class C>
MOELA_DEVICE void store_elements(const Fp8GemmParams& p, int left, int right,
                                 const float (&sums)[C::kRight / 2]) {
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i) {
    const int l = left + row0() + 8 * (i / 2 % 2), r = right + i / 4 * 8 + col0() + i % 2;
    store_element(p.args, C::kSwaps ? r : l, C::kSwaps ? l : r, sums[i]);
  }
}

// Among the threads of a warpgroup; ids are constants, so the warpgroups take different branches.
MOELA_DEVICE void sync_warpgroup() {
  if (warp() / 4 == 0) {
    bar_sync<1>(128);
  } else {
    bar_sync<2>(128);
  }
}

// Through shared memory by TMA, which clips what lies beyond d, while the next tile is multiplied.
template <class C>
MOELA_DEVICE void store_tile(const Fp8GemmParams& p, int left, int right,
                             const float (&sums)[C::kRight / 2]) {
  const bool is_bfloat16 = p.args.d_dtype == GemmFloat::kBFloat16;
  const int warpgroup = warp() / 4;
  const SmemAddr tile = smem_base() + C::kSmemD + static_cast<uint32_t>(warpgroup * 64 * C::kRight * 2);
  const bool issues = tid() % 128 == 0;
  if (issues) bulk_wait_read<0>();  // the last tile's store has read what is overwritten now
  sync_warpgroup();
  MOELA_UNROLL
  for (int j = 0; j < C::kRight / 16; ++j) {  // 16 columns at a time
    const int row = warp() % 4 * 16 + (lane() & 15), chunk = j % 4 * 2 + (lane() >> 4);
    uint32_t r[4];
    MOELA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float low = sums[j * 8 + 2 * i], high = sums[j * 8 + 2 * i + 1];
      r[i] = is_bfloat16 ? cvt_bf16x2(low, high) : cvt_f16x2(low, high);
    }
    stmatrix<4>(tile + static_cast<uint32_t>(j / 4 * 64 * 128 + row * 128 + ((chunk ^ (row & 7)) << 4)), r);
  }
  fence_proxy_async_shared();
  sync_warpgroup();
  if (!issues) return;
  for (int panel = 0; panel < C::kRight / 64; ++panel)
    if (right + panel * 64 < p.args.N && left + warpgroup * 64 < p.args.M)
      tma_store_2d(&p.d, right + panel * 64, left + warpgroup * 64,
                   tile + static_cast<uint32_t>(panel * 64 * 128));
  bulk_commit();
}

template <class C, bool kStoresByTma>
MOELA_DEVICE void multiply_tiles(const Fp8GemmParams& p) {
  Position<C> at;
  Tiles<C> tiles(p);
  for (int left, right; tiles.next(&left, &right);) {
    float sums[C::kRight / 2] = {};
    multiply_tile<C>(p, left, right, at, sums);
    add_bias<C>(p, left, right, sums);
    if constexpr (kStoresByTma) {
      store_tile<C>(p, left, right, sums);
    } else {
      store_elements<C>(p, left, right, sums);
    }
  }
  if constexpr (kStoresByTma)
    if (tid() % 128 == 0) bulk_wait_read<0>();  // shared memory must outlive the reads of the last store
}

}  // namespace fp8_gemm

// Registers: 65536 / 384 leave 168 a thread; the loading warpgroup gives back all but 40, so that two
// multiplying ones get 232 (64 sums, 2 x 64 accumulators, addresses). With one, 256 threads have enough as it
// is.
template <class C, bool kStoresByTma>
MOELA_KERNEL(C::kThreads)
fp8_gemm_kernel(MOELA_PARAM Fp8GemmParams p) {
  fp8_gemm::init_barriers<C>();
  griddep_wait();  // what comes before overlaps the kernel that writes a
  if (warp() >= C::kMathWarps) {
    if constexpr (C::kMathWarps == 8) setmaxnreg_dec<40>();
    if (warp() == C::kMathWarps && elect_one()) fp8_gemm::load_tiles<C>(p);
  } else {
    if constexpr (C::kMathWarps == 8) setmaxnreg_inc<232>();
    fp8_gemm::multiply_tiles<C, kStoresByTma>(p);
  }
  griddep_launch();
}

}  // namespace moela::cuda::sm90
