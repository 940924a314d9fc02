// Plan of the grouped FP8 GEMMs on Hopper. Group sizes are on the device, so it knows bounds and averages
// only. Pure: no torch, no CUDA, unit-tested.
#pragma once

#include "plan/gemm_sm90.h"

namespace moela::plan {

struct GroupedFp8GemmSm90Plan {
  int tile;             // index into kGemmSm90Tiles
  int splits;           // of the sum over K
  int cluster;          // blocks of a cluster
  int grid;             // blocks; each cluster walks over tiles
  double microseconds;  // what the cost model expects of groups of average size
};

// Experts that have rows, and how many; `most_tiles`, given the rows of a cluster's tile, is an upper bound.
struct GroupedRows {
  double experts, rows_per_expert;
  int64_t rows, num_experts;
  bool is_masked;
  int64_t most_tiles(int64_t rows_per_tile) const {
    if (is_masked) return num_experts * ceil_div(rows, rows_per_tile);
    return rows / rows_per_tile + (rows < num_experts ? rows : num_experts);
  }
};

// M rows over E experts: each that has one has as many as the others.
inline GroupedRows contiguous_rows(int64_t M, int64_t E) {
  const auto experts = static_cast<double>(M < E ? M : E);
  return {experts, static_cast<double>(M) / experts, M, E, false};
}

// Up to Mmax rows of each expert. What tile a count far below Mmax would like does not matter much: then the
// weights bound the call, and every tile reads them once and faster than the DRAM gives them.
inline GroupedRows masked_rows(int64_t Mmax, int64_t E) {
  return {static_cast<double>(E), static_cast<double>(Mmax), Mmax, E, true};
}

inline GroupedFp8GemmSm90Plan grouped_fp8_gemm_sm90_plan_with(int tile, int splits, const GroupedRows& r,
                                                              int64_t N, int num_sms) {
  const GemmSm90Tile& t = kGemmSm90Tiles[tile];
  const int cluster = gemm_sm90_cluster(t, splits);
  const int64_t most = num_sms / cluster,
                wanted = r.most_tiles(gemm_sm90_tokens(t)) * ceil_div(N, gemm_sm90_weights(t));
  return {.tile = tile,
          .splits = splits,
          .cluster = cluster,
          .grid = static_cast<int>((wanted < most ? wanted : most) * cluster),
          .microseconds = 0};
}

// The split of the sum over K is that of fp8_gemm: a row has the bits that it has with its expert alone.
inline GroupedFp8GemmSm90Plan plan_grouped_fp8_gemm_sm90(const GroupedRows& r, int64_t N, int64_t K,
                                                         const GemmSm90Machine& m = {}) {
  const int splits = gemm_sm90_splits(N, K);
  const double rows = r.experts * r.rows_per_expert;
  const double bytes = r.experts * N * K + rows * K + 2.0 * rows * N;
  const auto seconds = [&](const GemmSm90Tile& t) {
    // Groups end anywhere within their last tile: half of it is lost on average, and a small one is a tile.
    const double tiles = r.rows_per_expert / static_cast<double>(gemm_sm90_tokens(t)) + 0.5;
    const auto weights = static_cast<double>(ceil_div(N, gemm_sm90_weights(t)));
    return gemm_sm90_seconds(t, splits, K, r.experts * (tiles < 1 ? 1 : tiles) * weights, bytes, m);
  };
  const int tile = cheapest_gemm_sm90_tile(splits, m, seconds);
  GroupedFp8GemmSm90Plan plan = grouped_fp8_gemm_sm90_plan_with(tile, splits, r, N, m.num_sms);
  plan.microseconds = seconds(kGemmSm90Tiles[tile]) * 1e6;
  return plan;
}

inline std::ostream& operator<<(std::ostream& out, const GroupedFp8GemmSm90Plan& p) {
  const GemmSm90Tile& t = kGemmSm90Tiles[p.tile];
  out << t << ", cluster " << p.cluster << ", ";
  if (p.splits > 1) out << p.splits << " splits, ";
  return out << t.stages << " stages, on " << p.grid << " blocks";
}

}  // namespace moela::plan
