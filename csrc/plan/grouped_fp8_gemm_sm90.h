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

// What is known of the groups without their sizes: M rows over num_experts, or, masked, up to M rows of each.
struct GroupedRows {
  int64_t M, num_experts;
  bool is_masked;

  // Experts that have rows, if rows are spread as far as they go.
  double experts() const { return static_cast<double>(is_masked || num_experts < M ? num_experts : M); }
  double rows() const { return static_cast<double>(M) * (is_masked ? num_experts : 1); }

  // Of each expert that has rows. Groups end anywhere within their last tile: half of it is lost on average,
  // and a small group is a tile. Masked: of full groups. What tile a count far below M would like does not
  // matter much: then the weights bound the call, and every tile reads them once and faster than the DRAM
  // gives them.
  double tiles(int64_t rows_per_tile) const {
    if (is_masked) return static_cast<double>(ceil_div(M, rows_per_tile));
    const double average = rows() / experts() / static_cast<double>(rows_per_tile) + 0.5;
    return average < 1 ? 1 : average;
  }

  // Of all experts, however rows are spread.
  int64_t most_tiles(int64_t rows_per_tile) const {
    if (is_masked) return num_experts * ceil_div(M, rows_per_tile);
    const int64_t groups = M < num_experts ? M : num_experts;  // a row each, and full tiles of the others
    return groups + (M - groups) / rows_per_tile;
  }
};

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
  const double bytes = r.experts() * N * K + r.rows() * K + 2.0 * r.rows() * N;
  const auto seconds = [&](const GemmSm90Tile& t) {
    const double tiles = r.experts() * r.tiles(gemm_sm90_tokens(t)) * ceil_div(N, gemm_sm90_weights(t));
    return gemm_sm90_seconds(t, splits, K, tiles, bytes, m);
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
