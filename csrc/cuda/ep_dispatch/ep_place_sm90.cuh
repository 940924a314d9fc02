// Where received rows go in the layouts that are sorted by expert.
#pragma once

#include "cuda/block/ep_exchange.cuh"
#include "cuda/block/scan.cuh"
#include "cuda/ep_dispatch/ep_dispatch.h"

namespace moela::cuda::sm90 {

struct EpPlaceConfig {
  static constexpr int kWarps = 32, kThreads = kWarps * 32;
  static constexpr uint32_t kScratchBytes = kWarps * 8;
  static constexpr uint32_t smem_bytes(int num_ranks) {
    return kScratchBytes + static_cast<uint32_t>(num_ranks) * 8;
  }
};

// f(index of (row, k) in positions, local expert or -1) for rows first, ..., last - 1, in this order. One
// thread.
template <class F>
MOELA_DEVICE void ep_each_id(const EpPlaceParams& p, const EpRanks& ranks, int first, int last, F f) {
  const EpMemory& memory = p.exchange.memory;
  int source = 0, begin = 0;  // of its rows
  for (int row = first; row < last; ++row) {
    for (int end; row >= (end = lds<int32_t>(word_of(ranks.ends, source))); ++source) begin = end;
    const int64_t at =
        memory.rows_at(ranks.epoch, source) + int64_t{row - begin} * p.exchange.row_bytes + p.ids_offset;
    const auto* ids = ep_at<int32_t>(memory, memory.rank, at);
    for (int k = 0; k < p.topk; ++k) {
      const int32_t id = ldg(ids + k) - p.first_expert;
      f(int64_t{row} * p.topk + k, id >= 0 && id < p.num_local_experts ? id : -1);
    }
  }
}

// All threads. The places of the pairs of one expert; first, last: the rows of this thread. Expert 0 says too
// which pairs have no place, of the rows that have come.
MOELA_DEVICE void ep_place_expert(const EpPlaceParams& p, const EpRanks& ranks, SmemAddr scratch, int first,
                                  int last, int expert) {
  using C = EpPlaceConfig;
  int64_t mine = 0, below = 0;
  ep_each_id(p, ranks, first, last, [&](int64_t, int32_t id) {
    mine += id == expert;
    below += id >= 0 && id < expert;
  });
  const Sums of_mine = block_sums<C::kWarps>(mine, scratch), of_below = block_sums<C::kWarps>(below, scratch);
  const bool is_sorted = p.layout == EpLayout::kExpert;
  const int64_t begin = is_sorted ? of_below.all : int64_t{expert} * p.capacity;
  const int64_t end = is_sorted ? p.capacity : int64_t{expert + 1} * p.capacity;
  int64_t place = begin + of_mine.before;
  ep_each_id(p, ranks, first, last, [&](int64_t pair, int32_t id) {
    if (id == expert) {
      stg(p.positions + pair, place < end ? static_cast<int32_t>(place) : -1);
      ++place;
    } else if (id < 0 && expert == 0) {
      stg(p.positions + pair, -1);
    }
  });

  if (tid() != 0) return;
  const bool is_last = expert >= p.num_local_experts - 1;
  if (begin + of_mine.all > end && (is_last || !is_sorted))
    ep_report(p.exchange, EpError::kCapacity, p.exchange.memory.rank, ranks.epoch);
  if (is_sorted && is_last)
    stg(p.experts + p.num_local_experts, static_cast<int32_t>(of_below.all + of_mine.all));
  if (expert < p.num_local_experts)
    stg(p.experts + expert, static_cast<int32_t>(is_sorted ? of_below.all : of_mine.all));
}

// Waits for every source, and numbers its (row, k) within their expert: in received order, then by k.
// Bound: latency, every block reads all ids for each of its experts, one sector a row, from L2.
// Grid: at most one block per local expert; all of them, of all ranks, must run at once where ranks share a
// device. A block has experts block(), block() + num_blocks(), ...; a thread owns neighbouring rows.
// Invariants: a place is the number of pairs of lower experts (expert layout) and of earlier pairs of the
// same, so the result is the same in every run; each pair is written for its expert, one without an expert
// here for expert 0, which there is even where the rank has none. Source:
// python/moela/reference/ep_dispatch.py.
MOELA_KERNEL(EpPlaceConfig::kThreads) ep_place_kernel(MOELA_PARAM EpPlaceParams p) {
  using C = EpPlaceConfig;
  const EpMemory& memory = p.exchange.memory;
  const SmemAddr scratch = smem_base(), ends = scratch + C::kScratchBytes;
  const EpRanks ranks = {.ends = ends,
                         .states = word_of(ends, memory.num_ranks),
                         .epoch = ep_next_epoch(p.exchange, EpHalf::kReceive)};
  ep_wait_arrived(p.exchange, nullptr, ranks, C::kThreads);

  const int total = lds<int32_t>(word_of(ends, memory.num_ranks - 1));
  const int share = (total + C::kThreads - 1) / C::kThreads, from = tid() * share;
  const int first = from < total ? from : total, last = first + share < total ? first + share : total;
  const int experts = p.num_local_experts < 1 ? 1 : p.num_local_experts;
  for (int expert = block(); expert < experts; expert += num_blocks())
    ep_place_expert(p, ranks, scratch, first, last, expert);
  const int64_t pairs = int64_t{memory.num_ranks} * memory.max_tokens * p.topk;
  for (int64_t pair = int64_t{total} * p.topk + block() * C::kThreads + tid(); pair < pairs;
       pair += int64_t{num_blocks()} * C::kThreads)
    stg(p.positions + pair, -1);
}

}  // namespace moela::cuda::sm90
