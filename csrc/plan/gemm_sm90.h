// Tiles of the FP8 GEMMs on Hopper, how their sums over K are split, and what a tile costs. Pure: no torch,
// no CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <ostream>

namespace moela::plan {

// A kernel that exists. Rows of the left operand of the tensor core come in 64 per warpgroup, of the right
// one in block_right.
struct GemmSm90Tile {
  bool swaps = false;  // weights are the left operand, tokens the right one: d is computed transposed
  int warpgroups = 1;  // that multiply; a block owns 64 rows of the left operand per warpgroup
  int block_right;     // rows of the right operand of a block
  int stages;          // of 128 columns of K
  int cluster = 1;     // blocks that share one operand by multicast, with neighbouring rows of the other
  bool shares_left = false;  // the operand that they share
  bool splits = false;  // the sum over K is that of several splits; swapped, each has a block of a cluster
  constexpr int block_left() const { return 64 * warpgroups; }
  constexpr int cluster_left() const { return shares_left ? 1 : cluster; }
  constexpr int cluster_right() const { return shares_left ? cluster : 1; }
};

// The order is the kernel's number. 128 x 128: the widest tile whose two partial accumulators and sums fit
// the register file; with the totals of splits it is 128 x 64. Swapped: as few tokens as a decode step has,
// and stages for 64 KB and more in flight per SM.
constexpr GemmSm90Tile kGemmSm90Tiles[] = {
    {.warpgroups = 2, .block_right = 128, .stages = 5},
    {.warpgroups = 2, .block_right = 128, .stages = 5, .cluster = 2},
    {.warpgroups = 2, .block_right = 64, .stages = 7},
    {.warpgroups = 2, .block_right = 64, .stages = 7, .cluster = 2, .shares_left = true},
    {.swaps = true, .block_right = 16, .stages = 16},
    {.swaps = true, .block_right = 32, .stages = 14},
    {.swaps = true, .block_right = 64, .stages = 10},
    {.warpgroups = 2, .block_right = 64, .stages = 7, .splits = true},
    {.warpgroups = 2, .block_right = 64, .stages = 7, .cluster = 2, .shares_left = true, .splits = true},
    {.swaps = true, .block_right = 16, .stages = 16, .splits = true},
    {.swaps = true, .block_right = 32, .stages = 14, .splits = true},
    {.swaps = true, .block_right = 64, .stages = 10, .splits = true},
};
constexpr int kNumGemmSm90Tiles = sizeof kGemmSm90Tiles / sizeof kGemmSm90Tiles[0];

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Into how many splits the sum over K is cut: split j is steps [j * steps / splits, (j + 1) * steps /
// splits), summed in order from zero, and the splits are added in order. A function of the weight's shape
// only, so that a row's bits depend on neither its batch nor the machine. Doubled until 64 blocks of 64
// weights read the weight, which is about what it takes to draw the DRAM rate; but a step of 64 weights takes
// an SM some 160 cycles and the reduction 1700, so halving fewer than 24 steps saves nothing.
constexpr int gemm_sm90_splits(int64_t N, int64_t K) {
  constexpr int kMaxSplits = 8;  // blocks of a cluster, the portable limit
  constexpr int64_t kBlocks = 64, kMinSteps = 24;
  if (ceil_div(K, 128) < kMinSteps) return 1;
  int splits = 1;
  while (splits < kMaxSplits && ceil_div(N, 64) * splits < kBlocks) splits *= 2;
  return splits;
}

// What one H100 SXM does, published figures: 132 SMs at about 1.7 GHz, 3.35 TB/s, 4096 e4m3 multiply-adds per
// SM and cycle. An SM takes about 64 bytes a cycle from L2.
struct GemmSm90Machine {
  int num_sms = 132;
  double hertz = 1.7e9;
  double dram_bytes_per_s = 3.35e12;
  double l2_bytes_per_cycle = 64;
  double fma_per_cycle = 4096;
};

// Two things that overlap take the longer time and, since nothing overlaps fully, a tenth of the shorter one.
constexpr double overlapped(double x, double y) { return x > y ? x + 0.1 * y : y + 0.1 * x; }

// Cycles of an SM for one tile, by what they are spent on.
struct GemmSm90Cycles {
  double multiply, load, epilogue;
  double reduction;  // of a sum that a cluster shares: the tensor core waits, loading goes on
};

constexpr GemmSm90Cycles gemm_sm90_cycles(const GemmSm90Tile& t, int64_t K, int splits,
                                          const GemmSm90Machine& m) {
  const bool shares_sum = t.swaps && t.splits;
  const auto k = static_cast<double>(ceil_div(ceil_div(K, 128), shares_sum ? splits : 1) * 128);
  // The tensor core reads its left operand from shared memory for every instruction: below 64 columns that,
  // not the multiply-adds, is what it waits for.
  const double right = t.block_right < 64 ? 64 : t.block_right;
  const double rows = static_cast<double>(t.block_left()) / t.cluster_right() +
                      static_cast<double>(t.block_right) / t.cluster_left();
  // A warpgroup stores some 64 outputs a cycle; partial sums cross the cluster in about a microsecond; a
  // block that has all splits lets the tensor core run dry between them. All to be measured.
  constexpr double kReduction = 1700, kBetweenSplits = 200;
  const double between = t.splits && !shares_sum ? kBetweenSplits * (splits - 1) : 0;
  return {.multiply = t.block_left() * right * k / m.fma_per_cycle + between,
          .load = rows * k / m.l2_bytes_per_cycle,
          .epilogue = 100 + t.block_left() * t.block_right / 64.0,
          .reduction = shares_sum ? kReduction : 0};
}

// Blocks of a cluster: those of a multicast, or the splits of a swapped tile.
constexpr int gemm_sm90_cluster(const GemmSm90Tile& t, int splits) {
  return t.swaps && t.splits ? splits : t.cluster;
}

// Rows of a that a cluster owns, and of b.
constexpr int64_t gemm_sm90_tokens(const GemmSm90Tile& t) {
  return t.swaps ? t.block_right * t.cluster_right() : t.block_left() * t.cluster_left();
}
constexpr int64_t gemm_sm90_weights(const GemmSm90Tile& t) {
  return t.swaps ? t.block_left() * t.cluster_left() : t.block_right * t.cluster_right();
}

// Seconds of a call that gives clusters `num_tiles` tiles: on each SM, one after the other, and all of it
// beside the DRAM.
inline double gemm_sm90_seconds(const GemmSm90Tile& t, int splits, int64_t K, double num_tiles,
                                double dram_bytes, const GemmSm90Machine& m) {
  const int at_once = m.num_sms / gemm_sm90_cluster(t, splits);
  const double rounds = std::ceil(num_tiles / at_once);
  constexpr double kFill = 1500;  // once: the ring runs on into the next tile; to be measured
  const GemmSm90Cycles c = gemm_sm90_cycles(t, K, splits, m);
  const double last = overlapped(c.multiply, c.load) + c.epilogue + c.reduction;
  const double others = overlapped(c.multiply + c.reduction, c.load) + c.epilogue;
  const double on_sm = (kFill + (rounds - 1) * others + last) / m.hertz;
  return overlapped(on_sm, dram_bytes / m.dram_bytes_per_s);
}

// The number of the cheapest kernel for `seconds(tile)`, of those that add up in the order of the weight's
// shape and fit the machine.
template <class Seconds>
int cheapest_gemm_sm90_tile(int splits, const GemmSm90Machine& m, const Seconds& seconds) {
  int best = -1;
  double best_seconds = 0;
  for (int i = 0; i < kNumGemmSm90Tiles; ++i) {
    const GemmSm90Tile& t = kGemmSm90Tiles[i];
    if (t.splits != (splits > 1) || gemm_sm90_cluster(t, splits) > m.num_sms) continue;
    const double of_tile = seconds(t);
    if (best >= 0 && of_tile >= best_seconds) continue;
    best = i;
    best_seconds = of_tile;
  }
  return best;
}

inline std::ostream& operator<<(std::ostream& out, const GemmSm90Tile& t) {
  return out << (t.swaps ? "swapped " : "") << t.block_left() << " x " << t.block_right;
}

}  // namespace moela::plan
