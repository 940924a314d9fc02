// Interface of the CUDA ep_combine: its two kernels. Definition: python/moela/reference/ep_combine.py.
#pragma once

#include <cstdint>

#include "cuda/block/ep_memory.h"
#include "cuda/block/quant_input.h"
#include "cuda/hopper/launch.h"

namespace moela::cuda {

// Sends every received row back to where it came from: the sum of its places in y, times their weights. The
// row_bytes of the exchange are those of H elements, rounded up to 16.
struct EpCombineSendParams {
  EpExchange exchange;
  const void* y;  // rows of the layout that the dispatch has given, ldy elements apart
  QuantInput dtype;
  int64_t ldy;
  int64_t places;  // rows of y; what positions say beyond them is left out, and reported
  int H;
  const float* topk_weights;   // of y's rows; null: 1
  const int32_t* positions;    // [num_ranks * max_tokens, topk]: y's rows for each received row; -1: none
  const int32_t* recv_counts;  // [num_ranks]
  int topk;                    // of positions: 1 where a row has one place
};

// Waits for what comes back and adds it up, in the order of the ranks.
struct EpCombineReceiveParams {
  EpExchange exchange;
  void* out;  // [T, H], contiguous
  QuantInput dtype;
  int H;
  const int32_t* slots;        // [T, topk], of the dispatch
  const int32_t* send_counts;  // [num_ranks], of the dispatch
  int T;
  int topk;
};

// num_blocks: at most as many as run at once, of all ranks on the device.
LaunchStatus launch_ep_combine_send(const EpCombineSendParams& params, int num_blocks, Stream stream);
LaunchStatus launch_ep_combine_receive(const EpCombineReceiveParams& params, int num_blocks, Stream stream);

}  // namespace moela::cuda
