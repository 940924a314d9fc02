// The host side of fp8_gemm on Hopper: tensor maps, and the kernel that the plan names.
#pragma once

#include <utility>

#include "cuda/fp8_gemm/fp8_gemm_sm90.cuh"

namespace moela::cuda {
namespace fp8_gemm_host {

template <int kTile, plan::Fp8GemmSm90Tile kT = plan::kFp8GemmSm90Tiles[kTile]>
using ConfigOf = sm90::Fp8GemmConfig<kT.swaps, kT.warpgroups, kT.block_right, kT.cluster, kT.stages>;

constexpr bool is_aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

// A matrix of bytes or 16-bit elements, rows `stride` elements apart, in boxes of box_rows x box_cols.
inline TensorSpec matrix(const void* base, ElementType type, int64_t rows, int64_t cols, int64_t stride,
                         int box_rows, int box_cols) {
  return {.base = const_cast<void*>(base),
          .type = type,
          .rank = 2,
          .dims = {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)},
          .stride_bytes = {static_cast<uint64_t>(stride) * element_bytes(type)},
          .box = {static_cast<uint32_t>(box_cols), static_cast<uint32_t>(box_rows)},
          .swizzle = Swizzle::k128B};
}

inline bool stores_by_tma(const Fp8GemmArgs& g, bool swaps) {
  return !swaps && g.d_dtype != GemmFloat::kFloat32 && is_aligned(g.d, g.ldd * 2);
}

template <class C>
std::string launch_config(const Fp8GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream) {
  sm90::Fp8GemmParams p = {.left = {},
                           .right = {},
                           .d = {},
                           .args = g,
                           .tiles_left = plan.tiles_left,
                           .tiles_right = plan.tiles_right};
  const TensorSpec a = matrix(g.a, ElementType::kUint8, g.M, g.K, g.lda,
                              C::kSwaps ? C::kRight / C::kCluster : C::kLeft, C::kStep);
  const TensorSpec b = matrix(g.b, ElementType::kUint8, g.N, g.K, g.ldb,
                              C::kSwaps ? C::kLeft : C::kRight / C::kCluster, C::kStep);
  std::string error = encode_tensor_map(&p.left, C::kSwaps ? b : a);
  if (error.empty()) error = encode_tensor_map(&p.right, C::kSwaps ? a : b);
  const bool by_tma = stores_by_tma(g, C::kSwaps);
  if (error.empty() && by_tma) {
    const ElementType type =
        g.d_dtype == GemmFloat::kBFloat16 ? ElementType::kBFloat16 : ElementType::kFloat16;
    error = encode_tensor_map(&p.d, matrix(g.d, type, g.M, g.N, g.ldd, 64, 64));
  }
  if (!error.empty()) return error;
  const LaunchShape shape = {.grid = plan.grid,
                             .block = C::kThreads,
                             .cluster = C::kCluster,
                             .smem_bytes = C::kSmemBytes,
                             .overlaps_previous = true};
  if constexpr (!C::kSwaps)
    if (by_tma) return status_text(launch(shape, stream, &sm90::fp8_gemm_kernel<C, true>, p));
  return status_text(launch(shape, stream, &sm90::fp8_gemm_kernel<C, false>, p));
}

using LaunchFn = std::string (*)(const Fp8GemmArgs&, const plan::Fp8GemmSm90Plan&, Stream);

template <int... kTiles>
std::string launch_tile(const Fp8GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream,
                        std::integer_sequence<int, kTiles...>) {
  constexpr LaunchFn kLaunch[] = {launch_config<ConfigOf<kTiles>>...};
  return kLaunch[plan.tile](g, plan, stream);
}

}  // namespace fp8_gemm_host

std::string why_not_fp8_gemm(const Fp8GemmArgs& g) {
  if (!fp8_gemm_host::is_aligned(g.a, g.lda))
    return "TMA reads rows of a that start at multiples of 16 bytes";
  if (!fp8_gemm_host::is_aligned(g.b, g.ldb))
    return "TMA reads rows of b that start at multiples of 16 bytes";
  return "";
}

std::string launch_fp8_gemm(const Fp8GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream) {
  return fp8_gemm_host::launch_tile(g, plan, stream,
                                    std::make_integer_sequence<int, plan::kNumFp8GemmSm90Tiles>());
}

}  // namespace moela::cuda
