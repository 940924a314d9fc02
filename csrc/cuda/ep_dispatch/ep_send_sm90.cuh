// The sending half of ep_dispatch on Hopper.
#pragma once

#include "cuda/block/ep_rows.cuh"
#include "cuda/ep_dispatch/ep_column.cuh"

namespace moela::cuda::sm90 {

// All lanes. Row t of every column into the warp's row i.
MOELA_DEVICE void ep_fill_row(const EpSendParams& p, const EpWarp& warp, int i, int64_t t) {
  uint32_t bytes = 0;
  for (int c = 0; c < p.num_columns; ++c) {
    if (ep_by_tma(p.columns[c])) {
      bytes += p.columns[c].bytes;
    } else {
      ep_load_column(p.columns[c], t, warp.row(i) + p.columns[c].offset);
    }
  }
  fence_proxy_async_shared();  // of what the lanes have stored, before lane 0 sends it
  sync_warp();
  if (lane() != 0) return;
  mbarrier_arrive_expect_tx(warp.barrier(i), bytes);
  for (int c = 0; c < p.num_columns; ++c) {
    const EpColumn& column = p.columns[c];
    if (ep_by_tma(column))
      bulk_load(warp.row(i) + column.offset, column.data + t * column.stride, column.bytes, warp.barrier(i));
  }
}

// All lanes. Whether an earlier k has the same row: the token's experts of one rank share it.
MOELA_DEVICE bool ep_is_again(const int32_t* slots, int k, int32_t slot) {
  bool is_again = false;
  for (int j = lane(); j < k; j += 32) is_again |= ldg_nc(slots + j) == slot;
  return vote_ballot(is_again) != 0;
}

// All lanes. The warp's row i to every rank that token t goes to.
MOELA_DEVICE void ep_send_row(const EpSendParams& p, const EpRanks& ranks, const EpWarp& warp, int i,
                              int64_t t) {
  const EpMemory& memory = p.exchange.memory;
  const int32_t* slots = p.slots + t * p.topk;
  const int64_t rows = memory.rows_at(ranks.epoch, memory.rank);
  for (int k = 0; k < p.topk; ++k) {
    const int32_t slot = ldg_nc(slots + k);
    if (slot < 0 || ep_is_again(slots, k, slot)) continue;
    const EpPlace place = ep_place_of(ranks.ends, memory.num_ranks, slot);
    if (lane() == 0 && ep_state_of(ranks, place.rank) == EpState::kOpen)
      bulk_store(ep_at<uint8_t>(memory, place.rank, rows + int64_t{place.row} * p.exchange.row_bytes),
                 warp.row(i), p.exchange.row_bytes);
  }
  if (lane() == 0) bulk_commit();
}

// All lanes. What no column covers of a row travels too: zeros.
MOELA_DEVICE void ep_clear_padding(const EpSendParams& p, const EpWarp& warp) {
  for (int c = 0; c < p.num_columns; ++c) {
    const uint32_t end = p.columns[c].offset + p.columns[c].bytes, next = (end + 15) / 16 * 16;
    for (uint32_t b = end + static_cast<uint32_t>(lane()); b < next; b += 32) {
      sts(warp.row(0) + b, uint8_t{0});
      sts(warp.row(1) + b, uint8_t{0});
    }
  }
}

// Stores the wire row of every token into the memory of the ranks that have its experts, then tells them.
// Bound: NVLink, or on one device memory: every token is read once and written as often as it has ranks.
// Grid: up to one block per SM; a warp owns tokens first, first + step, ...
// Invariants: a row's place is a function of slots and counts, so nothing depends on the order of blocks; the
// release comes after the complete stores (not only their reads) of all blocks; row i + 1 is filled while row
// i is stored, and its stage was read by the stores of row i - 1. Source: the definition of ep_plan.
MOELA_KERNEL(EpRowsConfig::kMaxThreads)
ep_send_kernel(MOELA_PARAM EpSendParams p, MOELA_PARAM plan::EpRowsSm90Plan plan) {
  const int threads = plan.warps * EpRowsConfig::kWarpSize;
  const EpRowsSmem smem = ep_rows_smem(p.exchange, EpHalf::kSend);
  const EpWarp warp = ep_warp(smem, plan);
  const EpShare share = ep_share(plan);
  ep_clear_padding(p, warp);
  const bool is_well = ep_wait_released(p.exchange, p.counts, smem.ranks, threads);

  if (share.first < p.T) ep_fill_row(p, warp, 0, share.first);
  for (int t = share.first, i = 0; t < p.T; t += share.step, ++i) {
    if (t + share.step < p.T) {
      if (lane() == 0) bulk_wait_read<0>();  // of the row before this one
      sync_warp();
      ep_fill_row(p, warp, i + 1, t + share.step);
    }
    warp.wait(i);
    ep_send_row(p, smem.ranks, warp, i, t);
  }
  if (lane() == 0) bulk_wait<0>();  // complete, not only read: the release is about what peers find

  const EpEnd end = ep_end_block(p.exchange, EpHalf::kSend, smem.ranks.epoch, !is_well, smem.scratch);
  if (end == EpEnd::kEarly) return;
  ep_raise_arrived(p.exchange, smem.ranks, p.is_abort || end == EpEnd::kLastWithFailure, threads);
}

}  // namespace moela::cuda::sm90
