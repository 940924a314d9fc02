// The receiving half of ep_combine on Hopper.
#pragma once

#include "cuda/block/ep_rows.cuh"
#include "cuda/ep_combine/ep_combine.h"
#include "cuda/ep_combine/ep_sum_rows.cuh"

namespace moela::cuda::sm90 {

// All lanes. Lists the addresses of the rows that token t comes back as, by rank: in the order of send
// places, each once. Returns how many there are.
MOELA_DEVICE int ep_list_rows(const EpCombineReceiveParams& p, const EpRanks& ranks, SmemAddr list,
                              int64_t t) {
  const EpMemory& memory = p.exchange.memory;
  constexpr uint32_t kNone = ~0u;
  const int32_t* slots = p.slots + t * p.topk;
  int count = 0;
  sync_warp();  // who still reads the last token's list
  for (int32_t last = -1;;) {
    uint32_t next = kNone;
    for (int k = lane(); k < p.topk; k += 32) {
      const int32_t slot = ldg_nc(slots + k);
      if (slot > last && static_cast<uint32_t>(slot) < next) next = static_cast<uint32_t>(slot);
    }
    next = ~redux_max(~next);
    if (next == kNone) break;
    last = static_cast<int32_t>(next);
    const EpPlace place = ep_place_of(ranks.ends, memory.num_ranks, last);
    if (ep_state_of(ranks, place.rank) != EpState::kOpen) continue;
    if (lane() == 0)
      sts(list + static_cast<uint32_t>(count) * 8,
          reinterpret_cast<uint64_t>(ep_at<uint8_t>(
              memory, memory.rank,
              memory.rows_at(ranks.epoch, place.rank) + int64_t{place.row} * p.exchange.row_bytes)));
    ++count;
  }
  sync_warp();
  return count;
}

// Waits for every rank, adds up the rows of each token, then gives the symmetric memory back.
// Bound: memory, a token's rows are read once. Grid: up to one block per SM; all of them, of all ranks, must
// run at once where ranks share a device. A warp owns tokens first, first + step, ... Invariants: sums are in
// the order of ranks, so a token's bits depend on nothing else; the release comes after the loads of all
// blocks. Numerics: float32, rounded once; a token without rows is 0. Source:
// python/moela/reference/ep_combine.py.
template <QuantInput kInput, bool kAligned>
MOELA_KERNEL(EpRowsConfig::kMaxThreads)
ep_combine_receive_kernel(MOELA_PARAM EpCombineReceiveParams p, MOELA_PARAM plan::EpRowsSm90Plan plan) {
  using Type = typename EpPiece<kInput, kAligned>::Type;
  const int threads = plan.warps * EpRowsConfig::kWarpSize;
  const EpRowsSmem smem = ep_rows_smem(p.exchange, EpHalf::kReceive);
  const EpShare share = ep_share(plan);
  const SmemAddr list = smem.stages + static_cast<uint32_t>(warp()) * plan.row_bytes;
  ep_wait_arrived(p.exchange, p.send_counts, smem.ranks, threads);

  for (int t = share.first; t < p.T; t += share.step) {
    const int count = ep_list_rows(p, smem.ranks, list, t);
    const auto term = [&](int k) -> EpTerm {
      return {reinterpret_cast<const uint8_t*>(lds<uint64_t>(list + static_cast<uint32_t>(k) * 8)), 1.f};
    };
    auto* out =
        reinterpret_cast<Type*>(static_cast<uint8_t*>(p.out) + int64_t{t} * p.H * kElementBytes<kInput>);
    // Not through the read-only path: peers write these rows while this kernel runs.
    ep_sum_rows<kInput, kAligned>(
        count, p.H, term, [](const Type* from) { return ldg(from); },
        [&](int at, Type piece) { stg(out + at, piece); });
  }

  const EpEnd end = ep_end_block(p.exchange, EpHalf::kReceive, smem.ranks.epoch, false, smem.scratch);
  if (end == EpEnd::kEarly) return;
  ep_raise_released(p.exchange, smem.ranks, threads);
}

}  // namespace moela::cuda::sm90
