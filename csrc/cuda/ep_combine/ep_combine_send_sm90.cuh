// The sending half of ep_combine on Hopper.
#pragma once

#include "cuda/block/ep_rows.cuh"
#include "cuda/ep_combine/ep_combine.h"
#include "cuda/ep_combine/ep_sum_rows.cuh"

namespace moela::cuda::sm90 {

// All lanes. The sum of a received row's places into the warp's row i.
template <QuantInput kInput, bool kAligned>
MOELA_DEVICE void ep_fold_row(const EpCombineSendParams& p, const EpRanks& ranks, const EpWarp& warp, int i,
                              int64_t row) {
  using Type = typename EpPiece<kInput, kAligned>::Type;
  const int32_t* positions = p.positions + row * p.topk;
  const auto term = [&](int k) -> EpTerm {
    const int32_t place = ldg_nc(positions + k);
    if (place >= p.places && lane() == 0)
      ep_report(p.exchange, EpError::kCapacity, p.exchange.memory.rank, ranks.epoch);
    if (place < 0 || place >= p.places) return {nullptr, 0.f};
    return {static_cast<const uint8_t*>(p.y) + place * p.ldy * kElementBytes<kInput>,
            p.topk_weights == nullptr ? 1.f : ldg_nc(p.topk_weights + place)};
  };
  ep_sum_rows<kInput, kAligned>(
      p.topk, p.H, term, [](const Type* from) { return ldg_nc(from); },
      [&](int at, Type piece) { sts(warp.row(i) + static_cast<uint32_t>(at * sizeof(Type)), piece); });
}

// All lanes. What is behind the H elements of a wire row travels too: zeros.
MOELA_DEVICE void ep_clear_end(const EpWarp& warp, uint32_t used, uint32_t row_bytes) {
  for (uint32_t b = used + static_cast<uint32_t>(lane()); b < row_bytes; b += 32) {
    sts(warp.row(0) + b, uint8_t{0});
    sts(warp.row(1) + b, uint8_t{0});
  }
}

// Adds up the places of every received row and stores the sum into the memory of the rank that it came from.
// Bound: reading y, or NVLink. Grid: up to one block per SM; a warp owns rows first, first + step, ...
// Invariants: row j from a source goes back as row j to it; sums are in the order of k, so a row's bits
// depend on nothing else; the release comes after the complete stores of all blocks. Numerics: float32,
// rounded once. Source: python/moela/reference/ep_combine.py.
template <QuantInput kInput, bool kAligned>
MOELA_KERNEL(EpRowsConfig::kMaxThreads)
ep_combine_send_kernel(MOELA_PARAM EpCombineSendParams p, MOELA_PARAM plan::EpRowsSm90Plan plan) {
  const int threads = plan.warps * EpRowsConfig::kWarpSize;
  const EpMemory& memory = p.exchange.memory;
  const EpRowsSmem smem = ep_rows_smem(p.exchange, EpHalf::kSend);
  const EpWarp warp = ep_warp(smem, plan);
  const EpShare share = ep_share(plan);
  ep_clear_end(warp, static_cast<uint32_t>(p.H) * kElementBytes<kInput>, p.exchange.row_bytes);
  const bool is_well = ep_wait_released(p.exchange, p.recv_counts, smem.ranks, threads);

  const int total = lds<int32_t>(word_of(smem.ranks.ends, memory.num_ranks - 1));
  const int64_t rows = memory.rows_at(smem.ranks.epoch, memory.rank);
  for (int row = share.first, i = 0; row < total; row += share.step, ++i) {
    if (lane() == 0) bulk_wait_read<1>();  // of the row before the last, which was in this stage
    sync_warp();
    ep_fold_row<kInput, kAligned>(p, smem.ranks, warp, i, row);
    fence_proxy_async_shared();
    sync_warp();
    const EpPlace place = ep_place_of(smem.ranks.ends, memory.num_ranks, row);
    if (lane() != 0) continue;
    if (ep_state_of(smem.ranks, place.rank) == EpState::kOpen)
      bulk_store(ep_at<uint8_t>(memory, place.rank, rows + int64_t{place.row} * p.exchange.row_bytes),
                 warp.row(i), p.exchange.row_bytes);
    bulk_commit();
  }
  if (lane() == 0) bulk_wait<0>();  // complete, not only read: the release is about what peers find

  const EpEnd end = ep_end_block(p.exchange, EpHalf::kSend, smem.ranks.epoch, !is_well, smem.scratch);
  if (end == EpEnd::kEarly) return;
  ep_raise_arrived(p.exchange, smem.ranks, end == EpEnd::kLastWithFailure, threads);
}

}  // namespace moela::cuda::sm90
