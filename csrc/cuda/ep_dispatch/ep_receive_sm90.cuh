// The receiving half of ep_dispatch on Hopper.
#pragma once

#include "cuda/block/ep_rows.cuh"
#include "cuda/ep_dispatch/ep_column.cuh"

namespace moela::cuda::sm90 {

// All lanes. Received row `row` into the warp's row i.
MOELA_DEVICE void ep_fetch_row(const EpReceiveParams& p, const EpRanks& ranks, const EpWarp& warp, int i,
                               int row) {
  const EpMemory& memory = p.exchange.memory;
  const EpPlace place = ep_place_of(ranks.ends, memory.num_ranks, row);
  if (lane() != 0) return;
  const int64_t rows = memory.rows_at(ranks.epoch, place.rank);
  mbarrier_arrive_expect_tx(warp.barrier(i), p.exchange.row_bytes);
  bulk_load(warp.row(i),
            ep_at<uint8_t>(memory, memory.rank, rows + int64_t{place.row} * p.exchange.row_bytes),
            p.exchange.row_bytes, warp.barrier(i));
}

constexpr int64_t ep_num_places(const EpReceiveParams& p) {
  return p.layout == EpLayout::kMasked ? int64_t{p.num_local_experts} * p.capacity : p.capacity;
}

// All lanes. The columns of the warp's row i to a place.
MOELA_DEVICE void ep_copy_row(const EpReceiveParams& p, const EpWarp& warp, int i, int64_t place) {
  for (int c = 0; c < p.num_columns; ++c) {
    const EpColumn& column = p.columns[c];
    const SmemAddr from = warp.row(i) + column.offset;
    if (!ep_by_tma(column)) {
      ep_store_column(column, place, from);
    } else if (lane() == 0) {
      bulk_store(column.data + place * column.stride, from, column.bytes);
    }
  }
}

// All lanes. The warp's row i to where it is wanted.
MOELA_DEVICE void ep_unpack_row(const EpReceiveParams& p, const EpWarp& warp, int i, int64_t row) {
  const SmemAddr ids = warp.row(i) + p.ids_offset, weights = warp.row(i) + p.weights_offset;
  if (p.layout == EpLayout::kCompact) {
    ep_copy_row(p, warp, i, row);
    for (int k = lane(); k < p.topk; k += 32) {
      const int32_t id = lds<int32_t>(word_of(ids, k)) - p.first_expert;
      const bool is_here = id >= 0 && id < p.num_local_experts;
      stg(p.topk_ids + row * p.topk + k, is_here ? id : -1);
      stg(p.topk_weights + row * p.topk + k, is_here ? lds<float>(word_of(weights, k)) : 0.f);
    }
  } else {
    for (int k = 0; k < p.topk; ++k) {
      const int32_t place = ldg_nc(p.positions + row * p.topk + k);
      if (place < 0) continue;
      ep_copy_row(p, warp, i, place);
      if (lane() == 0) stg(p.topk_weights + place, lds<float>(word_of(weights, k)));
    }
  }
  if (lane() == 0) bulk_commit();
}

// Whether no row has this place. total: how many rows have come.
MOELA_DEVICE bool ep_is_empty(const EpReceiveParams& p, int total, int64_t place) {
  if (p.layout == EpLayout::kCompact) return place >= total;
  if (p.layout == EpLayout::kExpert) return place >= ldg_nc(p.experts + p.num_local_experts);
  return place % p.capacity >= ldg_nc(p.experts + place / p.capacity);
}

// All lanes. A place without a row: nothing uninitialised leaves an op.
MOELA_DEVICE void ep_clear_place(const EpReceiveParams& p, SmemAddr zeros, int64_t place) {
  for (int c = 0; c < p.num_columns; ++c) {
    const EpColumn& column = p.columns[c];
    if (!ep_by_tma(column)) {
      ep_clear_column(column, place);
    } else if (lane() == 0) {
      for (uint32_t b = 0; b < column.bytes; b += plan::kEpSm90ZeroBytes) {
        const uint32_t rest = column.bytes - b;
        bulk_store(column.data + place * column.stride + b, zeros,
                   rest < plan::kEpSm90ZeroBytes ? rest : plan::kEpSm90ZeroBytes);
      }
    }
  }
  if (p.layout == EpLayout::kCompact) {
    for (int k = lane(); k < p.topk; k += 32) {
      stg(p.topk_ids + place * p.topk + k, -1);
      stg(p.topk_weights + place * p.topk + k, 0.f);
    }
  } else if (lane() == 0) {
    stg(p.topk_weights + place, 0.f);
  }
  if (lane() == 0) bulk_commit();
}

// Waits for every source, copies its rows out of the symmetric memory, then gives that back.
// Bound: memory, a row is read and written once. Grid: up to one block per SM; all of them, of all ranks,
// must run at once where ranks share a device. A warp owns rows first, first + step, ... Invariants: a row's
// place is its number in the order of sources, or what ep_place_kernel says, so the result is the same in
// every run; the release comes after the loads of all blocks. A source that has failed counts as one without
// rows. Source: python/moela/reference/ep_dispatch.py.
MOELA_KERNEL(EpRowsConfig::kMaxThreads)
ep_receive_kernel(MOELA_PARAM EpReceiveParams p, MOELA_PARAM plan::EpRowsSm90Plan plan) {
  const int threads = plan.warps * EpRowsConfig::kWarpSize;
  const EpMemory& memory = p.exchange.memory;
  const EpRowsSmem smem = ep_rows_smem(p.exchange, EpHalf::kReceive);
  const EpWarp warp = ep_warp(smem, plan);
  const EpShare share = ep_share(plan);
  for (uint32_t b = static_cast<uint32_t>(tid()) * 16; b < plan::kEpSm90ZeroBytes;
       b += static_cast<uint32_t>(threads) * 16)
    sts(smem.zeros + b, Vec4{});
  fence_proxy_async_shared();
  ep_wait_arrived(p.exchange, nullptr, smem.ranks, threads);

  const int total = lds<int32_t>(word_of(smem.ranks.ends, memory.num_ranks - 1));
  const bool is_full = p.layout == EpLayout::kCompact && total > p.capacity;
  const int used = is_full ? p.capacity : total;
  if (block() == 0 && tid() == 0 && is_full)
    ep_report(p.exchange, EpError::kCapacity, memory.rank, smem.ranks.epoch);
  if (block() == 0)
    for (int r = tid(); r < memory.num_ranks; r += threads)
      stg(p.recv_counts + r, ep_count_of(smem.ranks.ends, r));

  if (share.first < used) ep_fetch_row(p, smem.ranks, warp, 0, share.first);
  for (int row = share.first, i = 0; row < used; row += share.step, ++i) {
    if (row + share.step < used) {
      if (lane() == 0) bulk_wait_read<0>();  // of the row before this one
      sync_warp();
      ep_fetch_row(p, smem.ranks, warp, i + 1, row + share.step);
    }
    warp.wait(i);
    ep_unpack_row(p, warp, i, row);
  }
  for (int64_t place = share.first; place < ep_num_places(p); place += share.step) {
    if (ep_is_empty(p, total, place)) ep_clear_place(p, smem.zeros, place);
  }
  if (lane() == 0) bulk_wait_read<0>();  // shared memory is the block's until then

  const EpEnd end = ep_end_block(p.exchange, EpHalf::kReceive, smem.ranks.epoch, false, smem.scratch);
  if (end == EpEnd::kEarly) return;
  ep_raise_released(p.exchange, smem.ranks, threads);
}

}  // namespace moela::cuda::sm90
