// ep_dispatch on Hopper: a kernel that sends, one that places where the layout asks for it, one that
// receives.
#pragma once

#include "cuda/ep_dispatch/ep_place_sm90.cuh"
#include "cuda/ep_dispatch/ep_receive_sm90.cuh"
#include "cuda/ep_dispatch/ep_send_sm90.cuh"

namespace moela::cuda::sm90 {

inline plan::EpRowsSm90Plan ep_send_plan(const EpSendParams& p, int num_blocks) {
  const EpExchange& x = p.exchange;
  return plan::plan_ep_rows_sm90(x.row_bytes, p.T, x.memory.num_ranks, num_blocks);
}

inline plan::EpRowsSm90Plan ep_receive_plan(const EpReceiveParams& p, int num_blocks) {
  const EpExchange& x = p.exchange;
  return plan::plan_ep_rows_sm90(x.row_bytes, ep_num_places(p), x.memory.num_ranks, num_blocks);
}

inline LaunchShape ep_place_shape(const EpPlaceParams& p, int num_blocks) {
  const int experts = p.num_local_experts < 1 ? 1 : p.num_local_experts;
  return {.grid = experts < num_blocks ? experts : num_blocks,
          .block = EpPlaceConfig::kThreads,
          .smem_bytes = EpPlaceConfig::smem_bytes(p.exchange.memory.num_ranks)};
}

}  // namespace moela::cuda::sm90

namespace moela::cuda {

LaunchStatus launch_ep_send(const EpSendParams& p, int num_blocks, Stream stream) {
  const auto plan = sm90::ep_send_plan(p, num_blocks);
  return launch({.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes}, stream,
                &sm90::ep_send_kernel, p, plan);
}

LaunchStatus launch_ep_place(const EpPlaceParams& p, int num_blocks, Stream stream) {
  return launch(sm90::ep_place_shape(p, num_blocks), stream, &sm90::ep_place_kernel, p);
}

LaunchStatus launch_ep_receive(const EpReceiveParams& p, int num_blocks, Stream stream) {
  const auto plan = sm90::ep_receive_plan(p, num_blocks);
  return launch({.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes}, stream,
                &sm90::ep_receive_kernel, p, plan);
}

}  // namespace moela::cuda
