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
  const int64_t tokens = ceil_div(M, gemm_sm90_tokens(t)), weights = ceil_div(N, gemm_sm90_weights(t));
  const int cluster = gemm_sm90_cluster(t, splits);
  const int64_t most = num_sms / cluster, wanted = tokens * weights;
  return {
      .tile = tile,
      .splits = splits,
      .tiles_left = static_cast<int>((t.swaps ? weights : tokens) * t.cluster_left()),
      .tiles_right = static_cast<int>((t.swaps ? tokens : weights) * t.cluster_right()),
      .cluster = cluster,
      .grid = static_cast<int>((wanted < most ? wanted : most) * cluster),
      .microseconds = 0,
  };
}

// M decides between the kernels, so a row is independent of its batch only if the tensor core sums a step the
// same way in each of them: csrc/cuda/fp8_gemm/DESIGN.md says what is known.
inline Fp8GemmSm90Plan plan_fp8_gemm_sm90(int64_t M, int64_t N, int64_t K, const GemmSm90Machine& m = {}) {
  const int splits = gemm_sm90_splits(N, K);
  const double bytes = static_cast<double>(N) * K + static_cast<double>(M) * K + 2.0 * M * N;
  const auto seconds = [&](const GemmSm90Tile& t) {
    const auto tiles =
        static_cast<double>(ceil_div(M, gemm_sm90_tokens(t)) * ceil_div(N, gemm_sm90_weights(t)));
    return gemm_sm90_seconds(t, splits, K, tiles, bytes, m);
  };
  const int tile = cheapest_gemm_sm90_tile(splits, m, seconds);
  Fp8GemmSm90Plan plan = fp8_gemm_sm90_plan_with(tile, splits, M, N, m.num_sms);
  plan.microseconds = seconds(kGemmSm90Tiles[tile]) * 1e6;
  return plan;
}

inline std::ostream& operator<<(std::ostream& out, const Fp8GemmSm90Plan& p) {
  const GemmSm90Tile& t = kGemmSm90Tiles[p.tile];
  out << t << ", cluster " << p.cluster << ", ";
  if (p.splits > 1) out << p.splits << " splits, ";
  return out << t.stages << " stages, " << p.tiles_left << " x " << p.tiles_right << " tiles on " << p.grid
             << " blocks";
}

}  // namespace moela::plan
