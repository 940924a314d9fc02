// Interface of the CUDA ep_dispatch: its kernels. Definition: python/moela/reference/ep_dispatch.py.
#pragma once

#include <cstdint>

#include "cuda/block/ep_memory.h"
#include "cuda/hopper/launch.h"

namespace moela::cuda {

// A column of the wire row, and the tensor that it comes from or goes to.
struct EpColumn {
  uint8_t* data;
  int64_t stride;   // bytes from row to row of the tensor
  uint32_t bytes;   // of a row
  uint32_t offset;  // in the wire row, a multiple of 16
};

constexpr int kEpMaxColumns = 8;

// Sends row t of every column to the ranks that slots[t] names, each of them once.
struct EpSendParams {
  EpExchange exchange;
  EpColumn columns[kEpMaxColumns];
  int num_columns;
  const int32_t* slots;   // [T, topk]: the place in send order of the row that carries (t, k); -1: none
  const int32_t* counts;  // [num_ranks]: rows to each rank
  int T;
  int topk;
  bool is_abort;  // with counts of zero: this rank gives the epoch up
};

// compact: a row per received row, in received order. kExpert: a row per (received row, local expert), sorted
// by expert, then in received order, then by k. kMasked: the same, with `capacity` places per expert.
enum class EpLayout { kCompact, kExpert, kMasked };

// Waits for the rows of every rank and finds their places in a layout that is not compact.
struct EpPlaceParams {
  EpExchange exchange;
  EpLayout layout;
  uint32_t ids_offset;  // in the wire row: topk global ids, int32
  int topk;
  int first_expert;
  int num_local_experts;
  int capacity;        // of the layout, or of an expert of it
  int32_t* positions;  // [num_ranks * max_tokens, topk]: the place of each (received row, k), -1: none
  int32_t* experts;    // offsets [num_local_experts + 1], or counts [num_local_experts]
};

// Waits for the rows of every rank and copies them to their places.
struct EpReceiveParams {
  EpExchange exchange;
  EpLayout layout;
  EpColumn columns[kEpMaxColumns];  // x and the extras: [places, bytes]
  int num_columns;
  uint32_t ids_offset;      // in the wire row: topk global ids, int32; for compact
  uint32_t weights_offset;  // topk float32
  int topk;                 // 0: the rows have neither
  int first_expert;
  int num_local_experts;
  const int32_t* positions;  // of EpPlaceParams, as is experts; compact has neither
  const int32_t* experts;
  int32_t* topk_ids;     // compact: [capacity, topk], local ids, -1 where the expert is not here
  float* topk_weights;   // compact: [capacity, topk], 0 there; else [places]
  int32_t* recv_counts;  // [num_ranks]
  int capacity;          // places past the last row are zeros, ids -1
};

// num_blocks: at most as many as run at once, of all ranks on the device.
LaunchStatus launch_ep_send(const EpSendParams& params, int num_blocks, Stream stream);
LaunchStatus launch_ep_place(const EpPlaceParams& params, int num_blocks, Stream stream);
LaunchStatus launch_ep_receive(const EpReceiveParams& params, int num_blocks, Stream stream);

}  // namespace moela::cuda
