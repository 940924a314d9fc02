// Plan of fp8_gemm on Hopper: which way round, which tile, how many stages. Pure: no torch, no CUDA,
// unit-tested.
#pragma once

#include <cstdint>
#include <ostream>

namespace moela::plan {

// A kernel that exists. Rows of the left operand of the tensor core come in 64 per warpgroup, of the right
// one in block_right.
struct Fp8GemmSm90Tile {
  bool swaps;       // weights are the left operand, tokens the right one: d is computed transposed
  int warpgroups;   // that multiply; a block owns 64 rows of the left operand per warpgroup
  int block_right;  // rows of the right operand of a block
  int cluster;      // blocks that share a tile of the right operand by multicast
  int stages;       // of 128 columns of K
  constexpr int block_left() const { return 64 * warpgroups; }
};

// The order is the kernel's number. 128 x 128: the widest tile whose two partial accumulators and sums fit
// the register file. Swapped: as few tokens as a decode step has, and stages for 64 KB and more in flight per
// SM.
constexpr Fp8GemmSm90Tile kFp8GemmSm90Tiles[] = {
    {.swaps = false, .warpgroups = 2, .block_right = 128, .cluster = 1, .stages = 5},
    {.swaps = false, .warpgroups = 2, .block_right = 128, .cluster = 2, .stages = 5},
    {.swaps = false, .warpgroups = 2, .block_right = 64, .cluster = 1, .stages = 7},
    {.swaps = true, .warpgroups = 1, .block_right = 16, .cluster = 1, .stages = 16},
    {.swaps = true, .warpgroups = 1, .block_right = 32, .cluster = 1, .stages = 14},
    {.swaps = true, .warpgroups = 1, .block_right = 64, .cluster = 1, .stages = 10},
};
constexpr int kNumFp8GemmSm90Tiles = sizeof kFp8GemmSm90Tiles / sizeof kFp8GemmSm90Tiles[0];

struct Fp8GemmSm90Plan {
  int tile;        // index into kFp8GemmSm90Tiles
  int tiles_left;  // a multiple of the cluster
  int tiles_right;
  int grid;             // blocks; each walks over tiles
  double microseconds;  // what the cost model expects; to compare plans with, not a promise
};

// What one H100 SXM does, published figures: 132 SMs at about 1.7 GHz, 3.35 TB/s, 4096 e4m3 multiply-adds per
// SM and cycle. An SM takes about 64 bytes a cycle from L2.
struct Fp8GemmSm90Machine {
  int num_sms = 132;
  double hertz = 1.7e9;
  double dram_bytes_per_s = 3.35e12;
  double l2_bytes_per_cycle = 64;
  double fma_per_cycle = 4096;
};

// Two things that overlap take the longer time and, since nothing overlaps fully, a tenth of the shorter one.
constexpr double overlapped(double x, double y) { return x > y ? x + 0.1 * y : y + 0.1 * x; }

// Seconds of a call: on each SM, tile after tile, multiplying beside loading; and all of it beside the DRAM.
inline double fp8_gemm_sm90_seconds(const Fp8GemmSm90Tile& t, int64_t M, int64_t N, int64_t K,
                                    const Fp8GemmSm90Machine& m) {
  const int64_t rows_left = t.swaps ? N : M, rows_right = t.swaps ? M : N;
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  const int64_t left = ceil_div(ceil_div(rows_left, t.block_left()), t.cluster) * t.cluster;
  const int64_t tiles = left * ceil_div(rows_right, t.block_right);
  const int64_t rounds = ceil_div(tiles, m.num_sms / t.cluster * t.cluster);
  const auto k = static_cast<double>(ceil_div(K, 128) * 128);
  // The tensor core reads its left operand from shared memory for every instruction: below 64 columns that,
  // not the multiply-adds, is what it waits for.
  const double right = t.block_right < 64 ? 64 : t.block_right;
  const double multiply = t.block_left() * right * k / m.fma_per_cycle;
  const double bytes = k * (t.block_left() + static_cast<double>(t.block_right) / t.cluster);
  const double load = bytes / m.l2_bytes_per_cycle;
  // The ring fills once, since it runs on into the next tile; a warpgroup stores some 64 outputs a cycle.
  // Both to be measured.
  constexpr double kFill = 1500;
  const double epilogue = 100 + t.block_left() * t.block_right / 64.0;
  const double cycles = static_cast<double>(rounds) * (overlapped(multiply, load) + epilogue) + kFill;
  const double on_sm = cycles / m.hertz;
  const double dram =
      (static_cast<double>(N) * K + static_cast<double>(M) * K + 2.0 * M * N) / m.dram_bytes_per_s;
  return overlapped(on_sm, dram);
}

// The cheapest kernel. M decides between tiles, so a row is independent of its batch only
// if the tensor core sums it the same way in each of them: csrc/cuda/fp8_gemm/DESIGN.md says what is known.
inline Fp8GemmSm90Plan plan_fp8_gemm_sm90(int64_t M, int64_t N, int64_t K, const Fp8GemmSm90Machine& m = {}) {
  int best = 0;
  double best_seconds = 0;
  for (int i = 0; i < kNumFp8GemmSm90Tiles; ++i) {
    const double seconds = fp8_gemm_sm90_seconds(kFp8GemmSm90Tiles[i], M, N, K, m);
    if (i == 0 || seconds < best_seconds) {
      best = i;
      best_seconds = seconds;
    }
  }
  const Fp8GemmSm90Tile& t = kFp8GemmSm90Tiles[best];
  const int64_t rows_left = t.swaps ? N : M, rows_right = t.swaps ? M : N;
  const int64_t clusters_left = (rows_left + t.block_left() * t.cluster - 1) / (t.block_left() * t.cluster);
  const int64_t tiles_right = (rows_right + t.block_right - 1) / t.block_right;
  const int64_t most = m.num_sms / t.cluster, wanted = clusters_left * tiles_right;
  return {
      .tile = best,
      .tiles_left = static_cast<int>(clusters_left * t.cluster),
      .tiles_right = static_cast<int>(tiles_right),
      .grid = static_cast<int>((wanted < most ? wanted : most) * t.cluster),
      .microseconds = best_seconds * 1e6,
  };
}

inline std::ostream& operator<<(std::ostream& out, const Fp8GemmSm90Plan& p) {
  const Fp8GemmSm90Tile& t = kFp8GemmSm90Tiles[p.tile];
  return out << (t.swaps ? "swapped " : "") << t.block_left() << " x " << t.block_right << ", cluster "
             << t.cluster << ", " << t.stages << " stages, " << p.tiles_left << " x " << p.tiles_right
             << " tiles on " << p.grid << " blocks";
}

}  // namespace moela::plan
