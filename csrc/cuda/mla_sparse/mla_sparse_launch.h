// The host side of mla_sparse: the tensor map of the queries, and the launches.
#pragma once

#include "cuda/mla_decode/mla_extent.h"
#include "cuda/mla_sparse/mla_sparse_sm90.cuh"

namespace moela::cuda {
namespace mla_sparse_host {

inline TensorSpec queries(const MlaSparseArgs& a) {
  const MlaExtent heads = {a.H, a.stride_qh}, tokens = {a.T, a.stride_qt};
  return {.base = const_cast<void*>(a.q),
          .type = element_type(a.dtype),
          .rank = 3,
          .dims = {static_cast<uint64_t>(a.D), static_cast<uint64_t>(a.H), static_cast<uint64_t>(a.T)},
          .stride_bytes = {heads.bytes(a.D), tokens.bytes(int64_t{a.D} * a.H)},
          .box = {64, plan::kMlaSm90Rows, 1},
          .swizzle = Swizzle::k128B};
}

template <class C>
std::string launch_with(const MlaSparseArgs& a, const plan::MlaSparseSm90Plan& plan, Stream stream) {
  sm90::MlaSparseParams p = {.q = {},
                             .args = a,
                             .tiles = plan.tiles,
                             .pieces = plan.pieces,
                             .piece_blocks = plan.piece_blocks,
                             .units = a.T * plan.pieces * plan.tiles,
                             .scale_log2 = static_cast<float>(a.sm_scale * 1.4426950408889634)};
  std::string error = encode_tensor_map(&p.q, queries(a));
  if (!error.empty()) return error;
  const LaunchShape attend = {
      .grid = plan.grid, .block = C::kThreads, .smem_bytes = C::kSmemBytes, .overlaps_previous = true};
  error = status_text(launch(attend, stream, &sm90::mla_sparse_kernel<C>, p));
  if (!error.empty() || plan.pieces == 1) return error;
  using Merge = sm90::MlaMergeConfig;
  const int64_t rows = static_cast<int64_t>(a.T) * a.H;
  const LaunchShape merge = {.grid = static_cast<int>((rows + Merge::kWarps - 1) / Merge::kWarps),
                             .block = Merge::kThreads,
                             .overlaps_previous = true};
  return status_text(launch(merge, stream, &sm90::mla_sparse_merge_kernel<C::kV, C::kFloat>, p));
}

template <MlaFloat kFloat, bool kHasBytes>
std::string launch_for(const MlaSparseArgs& a, const plan::MlaSparseSm90Plan& plan, Stream stream) {
  if (a.D == 576) return launch_with<sm90::MlaSparseConfig<576, 512, kFloat, kHasBytes>>(a, plan, stream);
  if constexpr (!kHasBytes)
    if (a.D == 320) return launch_with<sm90::MlaSparseConfig<320, 256, kFloat, false>>(a, plan, stream);
  return launch_with<sm90::MlaSparseConfig<512, 512, kFloat, kHasBytes>>(a, plan, stream);
}

}  // namespace mla_sparse_host

std::string why_not_mla_sparse(const MlaSparseArgs& a) {
  bool has_dims = false;
  for (const plan::MlaSm90Dims& dims : plan::kMlaSm90Dims)
    has_dims = has_dims || (a.D == dims.D && a.v_dim == dims.v_dim && !(a.has_bytes && a.v_dim == 256));
  if (!has_dims)
    return "there are kernels for rows of 512 + 64, 512 + 0 and, without codes, 256 + 64 columns";
  if (a.has_bytes && a.dtype != MlaFloat::kBFloat16)
    return "rows of codes are multiplied as bfloat16, as q is";
  if (!has_aligned_rows(a.q, 8, {{a.T, a.stride_qt}, {a.H, a.stride_qh}}))
    return "rows of q are read from multiples of 16 bytes";
  const int64_t elements = a.has_bytes ? 16 : 8;
  if (!has_aligned_rows(a.cache, elements, {{a.num_pages, a.stride_page}, {a.page_size, a.stride_slot}}))
    return "rows of the cache are read from multiples of 16 bytes";
  return "";
}

std::string launch_mla_sparse(const MlaSparseArgs& a, const plan::MlaSparseSm90Plan& plan, Stream stream) {
  using mla_sparse_host::launch_for;
  if (a.has_bytes) return launch_for<MlaFloat::kBFloat16, true>(a, plan, stream);
  if (a.dtype == MlaFloat::kBFloat16) return launch_for<MlaFloat::kBFloat16, false>(a, plan, stream);
  return launch_for<MlaFloat::kFloat16, false>(a, plan, stream);
}

}  // namespace moela::cuda
