// ep_combine on Hopper: a kernel that sends and one that receives. What happens between them overlaps.
#pragma once

#include "cuda/ep_combine/ep_combine_receive_sm90.cuh"
#include "cuda/ep_combine/ep_combine_send_sm90.cuh"

namespace moela::cuda::sm90 {

template <QuantInput kType, bool kIsAligned>
struct EpType {
  static constexpr QuantInput kInput = kType;
  static constexpr bool kAligned = kIsAligned;
};

// f(EpType) for what the tensors are. bits: of addresses and of bytes that must be multiples of 16.
template <class F>
auto ep_with_type(QuantInput dtype, uint64_t bits, F f) {
  const bool is_aligned = bits % 16 == 0;
  switch (dtype) {
    case QuantInput::kFloat32:
      return is_aligned ? f(EpType<QuantInput::kFloat32, true>{}) : f(EpType<QuantInput::kFloat32, false>{});
    case QuantInput::kBFloat16:
      return is_aligned ? f(EpType<QuantInput::kBFloat16, true>{})
                        : f(EpType<QuantInput::kBFloat16, false>{});
    default:
      return is_aligned ? f(EpType<QuantInput::kFloat16, true>{}) : f(EpType<QuantInput::kFloat16, false>{});
  }
}

inline int64_t element_bytes_of(QuantInput dtype) { return dtype == QuantInput::kFloat32 ? 4 : 2; }

using EpCombineSendKernel = void (*)(EpCombineSendParams, plan::EpRowsSm90Plan);
using EpCombineReceiveKernel = void (*)(EpCombineReceiveParams, plan::EpRowsSm90Plan);

inline EpCombineSendKernel ep_combine_send_kernel_for(const EpCombineSendParams& p) {
  const int64_t bytes = element_bytes_of(p.dtype);
  const auto bits = reinterpret_cast<uintptr_t>(p.y) | static_cast<uint64_t>((p.ldy | p.H) * bytes);
  return ep_with_type(p.dtype, bits, [](auto type) -> EpCombineSendKernel {
    return &ep_combine_send_kernel<decltype(type)::kInput, decltype(type)::kAligned>;
  });
}

inline EpCombineReceiveKernel ep_combine_receive_kernel_for(const EpCombineReceiveParams& p) {
  const auto bits =
      reinterpret_cast<uintptr_t>(p.out) | static_cast<uint64_t>(p.H * element_bytes_of(p.dtype));
  return ep_with_type(p.dtype, bits, [](auto type) -> EpCombineReceiveKernel {
    return &ep_combine_receive_kernel<decltype(type)::kInput, decltype(type)::kAligned>;
  });
}

inline plan::EpRowsSm90Plan ep_combine_send_plan(const EpCombineSendParams& p, int num_blocks) {
  const EpMemory& memory = p.exchange.memory;
  return plan::plan_ep_rows_sm90(p.exchange.row_bytes, int64_t{memory.num_ranks} * memory.max_tokens,
                                 memory.num_ranks, num_blocks);
}

// A warp's row in shared memory is its list of addresses.
inline plan::EpRowsSm90Plan ep_combine_receive_plan(const EpCombineReceiveParams& p, int num_blocks) {
  const int num_ranks = p.exchange.memory.num_ranks, most = p.topk < num_ranks ? p.topk : num_ranks;
  return plan::plan_ep_rows_sm90(static_cast<uint32_t>(most) * 8, p.T, num_ranks, num_blocks);
}

}  // namespace moela::cuda::sm90

namespace moela::cuda {

LaunchStatus launch_ep_combine_send(const EpCombineSendParams& p, int num_blocks, Stream stream) {
  const auto plan = sm90::ep_combine_send_plan(p, num_blocks);
  return launch({.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes}, stream,
                sm90::ep_combine_send_kernel_for(p), p, plan);
}

LaunchStatus launch_ep_combine_receive(const EpCombineReceiveParams& p, int num_blocks, Stream stream) {
  const auto plan = sm90::ep_combine_receive_plan(p, num_blocks);
  return launch({.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes}, stream,
                sm90::ep_combine_receive_kernel_for(p), p, plan);
}

}  // namespace moela::cuda
