// The host side of mla_decode: tensor maps, and the launches.
#pragma once

#include "cuda/mla_decode/mla_decode_sm90.cuh"
#include "cuda/mla_decode/mla_extent.h"
#include "cuda/mla_decode/mla_merge_sm90.cuh"
#include "cuda/mla_decode/mla_tiles_sm90.cuh"

namespace moela::cuda {
namespace mla_host {

inline bool is_ragged(const MlaDecodeArgs& a) { return a.cu_seqlens_q != nullptr; }

inline bool has_packed_rows(const MlaDecodeArgs& a) {
  return plan::has_packed_rows(a.s_q, a.H, a.stride_qj, a.stride_qh);
}

// [B][outer][inner rows][D]: all rows of a request evenly spaced, or those of each query.
inline TensorSpec queries(const MlaDecodeArgs& a, int box) {
  const bool is_packed = has_packed_rows(a);
  const MlaExtent inner = {is_packed ? int64_t{a.s_q} * a.H : a.H, a.H > 1 ? a.stride_qh : a.stride_qj};
  const MlaExtent outer = {is_packed ? 1 : a.s_q, a.stride_qj},
                  requests = {is_ragged(a) ? 1 : a.B, a.stride_qb};
  const int64_t dense_inner = a.D, dense_outer = inner.size * (inner.size > 1 ? inner.stride : a.D);
  return {.base = const_cast<void*>(a.q),
          .type = element_type(a.dtype),
          .rank = 4,
          .dims = {static_cast<uint64_t>(a.D), static_cast<uint64_t>(inner.size),
                   static_cast<uint64_t>(outer.size), static_cast<uint64_t>(requests.size)},
          .stride_bytes = {inner.bytes(dense_inner), outer.bytes(dense_outer), requests.bytes(dense_outer)},
          .box = {64, static_cast<uint32_t>(box), 1, 1},
          .swizzle = Swizzle::k128B};
}

// A cache without a slot has no key to be loaded, but a map has a size of at least 1: q lends its address.
inline TensorSpec keys(const MlaDecodeArgs& a, int box) {
  const bool is_empty = a.num_pages == 0 || a.page_size == 0;
  const MlaExtent slots = {is_empty ? 1 : a.page_size, a.stride_slot};
  const MlaExtent pages = {is_empty ? 1 : a.num_pages, a.stride_page};
  return {.base = const_cast<void*>(is_empty ? a.q : a.cache),
          .type = element_type(a.dtype),
          .rank = 3,
          .dims = {static_cast<uint64_t>(a.D), static_cast<uint64_t>(slots.size),
                   static_cast<uint64_t>(pages.size)},
          .stride_bytes = {slots.bytes(a.D), pages.bytes(slots.size * a.D)},
          .box = {64, static_cast<uint32_t>(box), 1},
          .swizzle = Swizzle::k128B};
}

template <class C, class Kernel>
std::string launch_with(const MlaDecodeArgs& a, const plan::MlaDecodeSm90Plan& plan, Kernel kernel,
                        Stream stream) {
  sm90::MlaDecodeParams p = {.q = {},
                             .cache = {},
                             .args = a,
                             .tiles = plan.tiles,
                             .key_box = plan.key_box,
                             .query_box = plan.query_box,
                             .num_parts = plan.num_parts,
                             .inner_rows = has_packed_rows(a) ? a.s_q * a.H : a.H,
                             .scale_log2 = static_cast<float>(a.sm_scale * 1.4426950408889634)};
  std::string error = encode_tensor_map(&p.q, queries(a, plan.query_box));
  if (error.empty() && !a.has_bytes) error = encode_tensor_map(&p.cache, keys(a, plan.key_box));
  if (!error.empty()) return error;
  const LaunchShape attend = {.grid = plan.num_parts * plan.tiles,
                              .block = C::kThreads,
                              .smem_bytes = C::kSmemBytes,
                              .overlaps_previous = true};
  error = status_text(launch(attend, stream, kernel, p));
  if (!error.empty()) return error;
  using Merge = sm90::MlaMergeConfig;
  const int64_t rows = static_cast<int64_t>(a.items) * a.item_rows;
  const LaunchShape merge = {.grid = static_cast<int>((rows + Merge::kWarps - 1) / Merge::kWarps),
                             .block = Merge::kThreads,
                             .overlaps_previous = true};
  return status_text(launch(merge, stream, &sm90::mla_merge_kernel<C::kV, C::kFloat>, p));
}

template <int kD, int kV, MlaFloat kFloat>
std::string launch_floats(const MlaDecodeArgs& a, const plan::MlaDecodeSm90Plan& plan, Stream stream) {
  using Few = sm90::MlaFewConfig<kD, kV, kFloat>;
  if (plan.path == plan::MlaDecodeSm90Path::kFew)
    return launch_with<Few>(a, plan, &sm90::mla_decode_few_kernel<Few>, stream);
  if constexpr (kD > kV) {
    using Seesaw = sm90::MlaSeesawConfig<kD, kV, kFloat>;
    if (plan.path == plan::MlaDecodeSm90Path::kSeesaw)
      return launch_with<Seesaw>(a, plan, &sm90::mla_decode_seesaw_kernel<Seesaw>, stream);
  }
  using C = sm90::MlaConfig<kD, kV, kFloat>;
  return launch_with<C>(a, plan, &sm90::mla_decode_kernel<C>, stream);
}

template <int kD>
std::string launch_bytes(const MlaDecodeArgs& a, const plan::MlaDecodeSm90Plan& plan, Stream stream) {
  using Few = sm90::MlaFewBytesConfig<kD>;
  if (plan.path == plan::MlaDecodeSm90Path::kFew)
    return launch_with<Few>(a, plan, &sm90::mla_decode_few_kernel<Few>, stream);
  using C = sm90::MlaBytesConfig<kD>;
  return launch_with<C>(a, plan, &sm90::mla_decode_bytes_kernel<C>, stream);
}

template <MlaFloat kFloat>
std::string launch_for(const MlaDecodeArgs& a, const plan::MlaDecodeSm90Plan& plan, Stream stream) {
  if (a.D == 576) return launch_floats<576, 512, kFloat>(a, plan, stream);
  if (a.D == 512) return launch_floats<512, 512, kFloat>(a, plan, stream);
  return launch_floats<320, 256, kFloat>(a, plan, stream);
}

}  // namespace mla_host

std::string why_not_mla_decode(const MlaDecodeArgs& a) {
  bool has_dims = false;
  for (const plan::MlaSm90Dims& dims : plan::kMlaSm90Dims)
    has_dims = has_dims || (a.D == dims.D && a.v_dim == dims.v_dim && !(a.has_bytes && a.v_dim == 256));
  if (!has_dims)
    return "there are kernels for rows of 512 + 64, 512 + 0 and, without codes, 256 + 64 columns";
  if (a.has_bytes && a.dtype != MlaFloat::kBFloat16)
    return "rows of codes are multiplied as bfloat16, as q is";
  if (!has_aligned_rows(
          a.q, 8,
          {{mla_host::is_ragged(a) ? 1 : a.B, a.stride_qb}, {a.s_q, a.stride_qj}, {a.H, a.stride_qh}}))
    return "rows of q are read from multiples of 16 bytes";
  const int64_t elements = a.has_bytes ? 16 : 8;
  if (!has_aligned_rows(a.cache, elements, {{a.num_pages, a.stride_page}, {a.page_size, a.stride_slot}}))
    return "rows of cache are read from multiples of 16 bytes";
  return "";
}

std::string launch_mla_tiles(const MlaDecodeArgs& a, int32_t* tiles, int32_t* lengths, Stream stream) {
  using C = sm90::MlaTilesConfig;
  const LaunchShape shape = {
      .grid = 1, .block = C::kThreads, .smem_bytes = C::kSmemBytes, .overlaps_previous = true};
  return status_text(launch(shape, stream, &sm90::mla_tiles_kernel,
                            sm90::MlaTilesParams{.cu_seqlens_q = a.cu_seqlens_q,
                                                 .seqlens = a.seqlens,
                                                 .B = a.B,
                                                 .H = a.H,
                                                 .items = a.items,
                                                 .item_rows = a.item_rows,
                                                 .causal = a.causal,
                                                 .tiles = tiles,
                                                 .lengths = lengths}));
}

std::string launch_mla_decode(const MlaDecodeArgs& a, const plan::MlaDecodeSm90Plan& plan, Stream stream) {
  if (a.has_bytes)
    return a.D == 576 ? mla_host::launch_bytes<576>(a, plan, stream)
                      : mla_host::launch_bytes<512>(a, plan, stream);
  if (a.dtype == MlaFloat::kBFloat16) return mla_host::launch_for<MlaFloat::kBFloat16>(a, plan, stream);
  return mla_host::launch_for<MlaFloat::kFloat16>(a, plan, stream);
}

}  // namespace moela::cuda
