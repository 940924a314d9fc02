// The host side of fp8_gemm on Hopper: tensor maps, and the kernel that the plan names.
#pragma once

#include <utility>

#include "cuda/fp8_gemm/fp8_gemm_sm90.cuh"

namespace moela::cuda {
namespace fp8_gemm_host {

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

inline bool stores_by_tma(const GemmArgs& g, bool swaps) {
  return !swaps && g.d_dtype != GemmFloat::kFloat32 && is_aligned(g.d, g.ldd * 2);
}

template <class C>
std::string launch_config(const GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream) {
  sm90::GemmParams p = {.left = {},
                        .right = {},
                        .d = {},
                        .args = g,
                        .splits = plan.splits,
                        .tiles_left = plan.tiles_left,
                        .tiles_right = plan.tiles_right};
  const TensorSpec a =
      matrix(g.a, ElementType::kUint8, g.M, g.K, g.lda, C::kSwaps ? C::kRightBox : C::kLeftBox, C::kStep);
  const TensorSpec b =
      matrix(g.b, ElementType::kUint8, g.N, g.K, g.ldb, C::kSwaps ? C::kLeftBox : C::kRightBox, C::kStep);
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
                             .cluster = plan.cluster,
                             .smem_bytes = C::kSmemBytes,
                             .overlaps_previous = true};
  if constexpr (!C::kSwaps)
    if (by_tma) return status_text(launch(shape, stream, &sm90::fp8_gemm_kernel<C, true>, p));
  return status_text(launch(shape, stream, &sm90::fp8_gemm_kernel<C, false>, p));
}

using LaunchFn = std::string (*)(const GemmArgs&, const plan::Fp8GemmSm90Plan&, Stream);

template <int... kTiles>
std::string launch_tile(const GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream,
                        std::integer_sequence<int, kTiles...>) {
  constexpr LaunchFn kLaunch[] = {launch_config<sm90::GemmConfig<kTiles>>...};
  return kLaunch[plan.tile](g, plan, stream);
}

}  // namespace fp8_gemm_host

std::string why_not_fp8_gemm(const GemmArgs& g) {
  if (!fp8_gemm_host::is_aligned(g.a, g.lda))
    return "TMA reads rows of a that start at multiples of 16 bytes";
  if (!fp8_gemm_host::is_aligned(g.b, g.ldb))
    return "TMA reads rows of b that start at multiples of 16 bytes";
  return "";
}

std::string launch_fp8_gemm(const GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream) {
  if (plan.splits > plan::ceil_div(g.K, 128)) return "a split of the sum over K would be empty";
  return fp8_gemm_host::launch_tile(g, plan, stream,
                                    std::make_integer_sequence<int, plan::kNumGemmSm90Tiles>());
}

}  // namespace moela::cuda
