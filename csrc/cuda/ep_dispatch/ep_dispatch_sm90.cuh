// ep_dispatch on Hopper: a kernel that sends and one that receives. What happens between them overlaps.
#pragma once

#include "cuda/ep_dispatch/ep_receive_sm90.cuh"
#include "cuda/ep_dispatch/ep_send_sm90.cuh"

namespace moela::cuda {

LaunchStatus launch_ep_send(const EpSendParams& p, int num_blocks, Stream stream) {
  const EpExchange& x = p.exchange;
  const auto plan = plan::plan_ep_rows_sm90(x.row_bytes, p.T, x.memory.num_ranks, num_blocks);
  return launch({.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes}, stream,
                &sm90::ep_send_kernel, p, plan);
}

LaunchStatus launch_ep_receive(const EpReceiveParams& p, int num_blocks, Stream stream) {
  const EpExchange& x = p.exchange;
  const auto plan = plan::plan_ep_rows_sm90(x.row_bytes, p.capacity, x.memory.num_ranks, num_blocks);
  return launch({.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes}, stream,
                &sm90::ep_receive_kernel, p, plan);
}

}  // namespace moela::cuda
