// Plan of fp8_gemm on Hopper: which way round, which tile, how many stages. Pure: no torch, no CUDA,
// unit-tested.
#pragma once

#include "plan/gemm_sm90.h"

namespace moela::plan {

struct Fp8GemmSm90Plan {
  int tile;    // index into kGemmSm90Tiles
  int splits;  // of the sum over K
  int tiles_left;
  int tiles_right;      // whole clusters, as tiles_left
  int cluster;          // blocks of a cluster: those of a multicast or the splits of a swapped tile
  int grid;             // blocks; each cluster walks over tiles
  double microseconds;  // what the cost model expects; to compare plans with, not a promise
};

// Rounds up to whole clusters and fills the machine at most.
inline Fp8GemmSm90Plan fp8_gemm_sm90_plan_with(int tile, int splits, int64_t M, int64_t N, int num_sms) {
  const GemmSm90Tile& t = kGemmSm90Tiles[tile];
  const int64_t left = ceil_div(t.swaps ? N : M, t.block_left() * t.cluster_left()),
                right = ceil_div(t.swaps ? M : N, t.block_right * t.cluster_right());
  const int cluster = gemm_sm90_cluster(t, splits);
  const int64_t most = num_sms / cluster, wanted = left * right;
  return {
      .tile = tile,
      .splits = splits,
      .tiles_left = static_cast<int>(left * t.cluster_left()),
      .tiles_right = static_cast<int>(right * t.cluster_right()),
      .cluster = cluster,
      .grid = static_cast<int>((wanted < most ? wanted : most) * cluster),
      .microseconds = 0,
  };
}

// Seconds of a call: on each SM, tile after tile, and all of it beside the DRAM.
inline double fp8_gemm_sm90_seconds(const Fp8GemmSm90Plan& p, int64_t M, int64_t N, int64_t K,
                                    const GemmSm90Machine& m) {
  const GemmSm90Tile& t = kGemmSm90Tiles[p.tile];
  const int blocks_per_tile = p.cluster / t.cluster;
  const int64_t tiles = int64_t{p.tiles_left} * p.tiles_right * blocks_per_tile;
  const auto rounds = static_cast<double>(ceil_div(tiles, m.num_sms / p.cluster * p.cluster));
  constexpr double kFill = 1500;  // once: the ring runs on into the next tile; to be measured
  const double on_sm = (rounds * gemm_sm90_tile_cycles(t, K, p.splits, m) + kFill) / m.hertz;
  const double dram =
      (static_cast<double>(N) * K + static_cast<double>(M) * K + 2.0 * M * N) / m.dram_bytes_per_s;
  return overlapped(on_sm, dram);
}

// The cheapest of the kernels that add up in the order of the weight's shape. M decides between them, so a
// row is independent of its batch only if the tensor core sums a step the same way in each of them:
// csrc/cuda/fp8_gemm/DESIGN.md says what is known.
inline Fp8GemmSm90Plan plan_fp8_gemm_sm90(int64_t M, int64_t N, int64_t K, const GemmSm90Machine& m = {}) {
  const int splits = gemm_sm90_splits(N, K);
  Fp8GemmSm90Plan best = {};
  for (int i = 0; i < kNumGemmSm90Tiles; ++i) {
    const GemmSm90Tile& t = kGemmSm90Tiles[i];
    if (t.splits != (splits > 1) || gemm_sm90_cluster(t, splits) > m.num_sms) continue;
    Fp8GemmSm90Plan p = fp8_gemm_sm90_plan_with(i, splits, M, N, m.num_sms);
    p.microseconds = fp8_gemm_sm90_seconds(p, M, N, K, m) * 1e6;
    if (best.grid == 0 || p.microseconds < best.microseconds) best = p;
  }
  return best;
}

inline std::ostream& operator<<(std::ostream& out, const Fp8GemmSm90Plan& p) {
  const GemmSm90Tile& t = kGemmSm90Tiles[p.tile];
  out << t << ", cluster " << p.cluster << ", ";
  if (p.splits > 1) out << p.splits << " splits, ";
  return out << t.stages << " stages, " << p.tiles_left << " x " << p.tiles_right << " tiles on " << p.grid
             << " blocks";
}

}  // namespace moela::plan
