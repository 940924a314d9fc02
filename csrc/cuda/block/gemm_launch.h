// The host side of an FP8 GEMM: tensor maps, and the launch of a kernel.
#pragma once

#include <string>
#include <utility>

#include "cuda/block/gemm_params.cuh"
#include "cuda/hopper/launch.h"

namespace moela::cuda::gemm_host {

struct Launch {
  int tile, splits, cluster, grid;  // as a plan has them
  Stream stream;
};

constexpr bool is_aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

// Matrices of bytes or 16-bit elements, rows lda and matrices stride_e elements apart, in boxes of box_rows x
// box_cols. The innermost dimensions but one are the rows, so no box reaches into the next matrix.
inline TensorSpec matrices(const void* base, ElementType type, int count, int64_t rows, int64_t cols,
                           int64_t stride, int64_t stride_e, int box_rows, int box_cols) {
  const auto bytes = [&](int64_t elements) { return static_cast<uint64_t>(elements) * element_bytes(type); };
  return {.base = const_cast<void*>(base),
          .type = type,
          .rank = 3,
          .dims = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows), static_cast<uint64_t>(count)},
          .stride_bytes = {bytes(stride), bytes(count > 1 ? stride_e : rows * stride)},
          .box = {static_cast<uint32_t>(box_cols), static_cast<uint32_t>(box_rows), 1},
          .swizzle = Swizzle::k128B};
}

// "" or why TMA cannot read these operands.
inline std::string why_not(const GemmArgs& g) {
  if (!is_aligned(g.a, g.lda) || g.a_stride_e % 16 != 0)
    return "TMA reads rows of a that start at multiples of 16 bytes";
  if (!is_aligned(g.b, g.ldb) || g.b_stride_e % 16 != 0)
    return "TMA reads rows of b that start at multiples of 16 bytes";
  return "";
}

inline bool stores_by_tma(const GemmArgs& g) {
  return g.d_dtype != GemmFloat::kFloat32 && is_aligned(g.d, g.ldd * 2) && g.d_stride_e % 8 == 0;
}

template <class C>
TileSchedule schedule_of(const GemmArgs& g) {
  const int left = C::kClusterLeft * C::kLeft, right = C::kClusterRight * C::kRight;
  const int of_tokens = C::kSwaps ? right : left, of_weights = C::kSwaps ? left : right;
  return {.kind = g.groups,
          .table = g.table,
          .groups = g.num_experts,
          .limit = g.M,
          .rows = g.M,
          .rows_per_tile = of_tokens,
          .clusters_other = (g.N + of_weights - 1) / of_weights,
          .rows_are_left = !C::kSwaps};
}

// Kernels: by_tma<C>() and from_registers<C>() are the kernels of an op for a GemmConfig.
template <class Kernels, int kTile>
std::string launch_tile(const GemmArgs& g, const Launch& l) {
  using C = sm90::GemmConfig<kTile>;
  sm90::GemmParams p = {
      .left = {}, .right = {}, .d = {}, .args = g, .schedule = schedule_of<C>(g), .splits = l.splits};
  const int num_matrices = g.groups == GroupKind::kCounts ? g.num_experts : 1;  // of a and d
  const TensorSpec a = matrices(g.a, ElementType::kUint8, num_matrices, g.M, g.K, g.lda, g.a_stride_e,
                                C::kSwaps ? C::kRightBox : C::kLeftBox, C::kStep);
  const TensorSpec b = matrices(g.b, ElementType::kUint8, g.num_experts, g.N, g.K, g.ldb, g.b_stride_e,
                                C::kSwaps ? C::kLeftBox : C::kRightBox, C::kStep);
  std::string error = encode_tensor_map(&p.left, C::kSwaps ? b : a);
  if (error.empty()) error = encode_tensor_map(&p.right, C::kSwaps ? a : b);
  auto kernel = Kernels::template from_registers<C>();
  if constexpr (!C::kSwaps) {
    if (error.empty() && stores_by_tma(g)) {
      const ElementType type =
          g.d_dtype == GemmFloat::kBFloat16 ? ElementType::kBFloat16 : ElementType::kFloat16;
      error =
          encode_tensor_map(&p.d, matrices(g.d, type, num_matrices, g.M, g.N, g.ldd, g.d_stride_e, 64, 64));
      kernel = Kernels::template by_tma<C>();
    }
  }
  if (!error.empty()) return error;
  const LaunchShape shape = {.grid = l.grid,
                             .block = C::kThreads,
                             .cluster = l.cluster,
                             .smem_bytes = C::kSmemBytes,
                             .overlaps_previous = true};
  return status_text(launch(shape, l.stream, kernel, p));
}

template <class Kernels, int... kTiles>
std::string launch_any(const GemmArgs& g, const Launch& l, std::integer_sequence<int, kTiles...>) {
  using LaunchFn = std::string (*)(const GemmArgs&, const Launch&);
  constexpr LaunchFn kLaunch[] = {launch_tile<Kernels, kTiles>...};
  return kLaunch[l.tile](g, l);
}

// Writes d. "" or why it could not be launched.
template <class Kernels>
std::string launch_gemm(const GemmArgs& g, const Launch& l) {
  if (l.splits > plan::ceil_div(g.K, 128)) return "a split of the sum over K would be empty";
  return launch_any<Kernels>(g, l, std::make_integer_sequence<int, plan::kNumGemmSm90Tiles>());
}

}  // namespace moela::cuda::gemm_host
