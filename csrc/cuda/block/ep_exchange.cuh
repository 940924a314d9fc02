// How the ranks of an exchange wait for each other and tell each other, in every kernel of it.
#pragma once

#include "cuda/block/ep_memory.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

// The rank's memory from this offset on.
template <class T>
MOELA_DEVICE T* ep_at(const EpMemory& memory, int rank, int64_t offset) {
  return reinterpret_cast<T*>(ldg_nc(memory.bases + rank) + offset);
}

// The epoch of this kernel. Read by every thread before the last block writes it back: see ep_end_block.
MOELA_DEVICE uint64_t ep_next_epoch(const EpExchange& x, EpHalf half) {
  return ldg(x.epochs + static_cast<int>(half)) + 1;
}

MOELA_DEVICE void ep_report(const EpExchange& x, EpError error, int peer, uint64_t epoch) {
  st_relaxed<Scope::kSys>(x.status, ep_status(error, peer, epoch));
}

// What has come of the wait for a rank: nothing, a word of it, a word that promises what was asked for.
enum class EpState : uint32_t { kSilent, kRefused, kOpen };

// Of an epoch, words of shared memory, one per rank: counts, which become ends, and the state.
struct EpRanks {
  SmemAddr ends;
  SmemAddr states;
  uint64_t epoch;
};

MOELA_DEVICE SmemAddr word_of(SmemAddr words, int rank) { return words + static_cast<uint32_t>(rank) * 4; }

MOELA_DEVICE EpState ep_state_of(const EpRanks& ranks, int rank) {
  return static_cast<EpState>(lds<uint32_t>(word_of(ranks.states, rank)));
}

// Counts become inclusive prefix sums; whether every rank is open. All threads, after the waits.
MOELA_DEVICE bool ep_sum_up(const EpRanks& ranks, int num_ranks) {
  sync_block();
  if (tid() == 0) {
    int32_t sum = 0;
    for (int r = 0; r < num_ranks; ++r) {
      sum += lds<int32_t>(word_of(ranks.ends, r));
      sts(word_of(ranks.ends, r), sum);
    }
  }
  sync_block();
  bool is_well = true;
  for (int r = 0; r < num_ranks; ++r) is_well &= ep_state_of(ranks, r) == EpState::kOpen;
  return is_well;
}

// Until every peer has released the epoch before the last. All threads of the block.
MOELA_DEVICE bool ep_wait_released(const EpExchange& x, const int32_t* counts, const EpRanks& ranks,
                                   int threads) {
  const EpMemory& memory = x.memory;
  const uint64_t epoch = ranks.epoch < 2 ? 0 : ranks.epoch - 2;
  for (int peer = tid(); peer < memory.num_ranks; peer += threads) {
    const auto* flag = ep_at<uint64_t>(memory, memory.rank, memory.released_at(peer));
    const bool is_open = wait_flag_until<Scope::kSys>(flag, epoch, x.deadline);
    if (!is_open) ep_report(x, EpError::kNotReleased, peer, ranks.epoch);
    sts(word_of(ranks.states, peer), static_cast<uint32_t>(is_open ? EpState::kOpen : EpState::kSilent));
    sts(word_of(ranks.ends, peer), ldg(counts + peer));
  }
  return ep_sum_up(ranks, memory.num_ranks);
}

// Until the rows of every source are here. counts: how many there have to be; null: as many as the source
// says, none where it says nothing. All threads of the block.
MOELA_DEVICE void ep_wait_arrived(const EpExchange& x, const int32_t* counts, const EpRanks& ranks,
                                  int threads) {
  const EpMemory& memory = x.memory;
  for (int source = tid(); source < memory.num_ranks; source += threads) {
    const auto* flag = ep_at<uint64_t>(memory, memory.rank, memory.arrived_at(source));
    const bool is_here = wait_flag_until<Scope::kSys>(flag, ranks.epoch, x.deadline);
    EpError error = is_here ? EpError::kNone : EpError::kNotArrived;
    EpHeader header = {};
    const int32_t wanted = counts == nullptr ? 0 : ldg(counts + source);
    if (is_here) {
      header = ldg(ep_at<EpHeader>(memory, memory.rank, memory.header_at(ranks.epoch, source)));
      if (header.is_abort) {
        error = EpError::kAborted;
      } else if (header.row_bytes != x.row_bytes || header.kind != x.kind ||
                 (counts != nullptr && header.count != static_cast<uint32_t>(wanted))) {
        error = EpError::kDisagreement;
      }
    }
    if (error != EpError::kNone) ep_report(x, error, source, ranks.epoch);
    const EpState state = !is_here                  ? EpState::kSilent
                          : error != EpError::kNone ? EpState::kRefused
                                                    : EpState::kOpen;
    const auto count = state == EpState::kOpen ? static_cast<int32_t>(header.count) : 0;
    sts(word_of(ranks.states, source), static_cast<uint32_t>(state));
    sts(word_of(ranks.ends, source), counts == nullptr ? count : wanted);
  }
  ep_sum_up(ranks, memory.num_ranks);
  fence_proxy_async_global();  // the rows were seen to arrive by generic loads, and TMA reads them
}

struct EpPlace {
  int rank;
  int row;  // of those of the rank
};

// Where a row is in the order of ranks. All lanes, which ask for the same one.
MOELA_DEVICE EpPlace ep_place_of(SmemAddr ends, int num_ranks, int row) {
  uint32_t before = 0;
  for (int r = lane(); r < num_ranks; r += 32) before += lds<int32_t>(word_of(ends, r)) <= row;
  const auto rank = static_cast<int>(redux_add(before));
  return {rank, rank == 0 ? row : row - lds<int32_t>(word_of(ends, rank - 1))};
}

MOELA_DEVICE int ep_count_of(SmemAddr ends, int rank) {
  return lds<int32_t>(word_of(ends, rank)) - (rank == 0 ? 0 : lds<int32_t>(word_of(ends, rank - 1)));
}

enum class EpEnd : uint32_t { kEarly, kLast, kLastWithFailure };

// Ends a block's part; all threads, each of which knows that its own accesses are over. The last block knows
// that those of all blocks are, and whether one of them has failed, and counts the epoch. scratch: 4 bytes of
// shared memory.
MOELA_DEVICE EpEnd ep_end_block(const EpExchange& x, EpHalf half, uint64_t epoch, bool has_failed,
                                SmemAddr scratch) {
  uint32_t* done = x.done + static_cast<int>(half);
  constexpr uint32_t kFailure = 0x10000;
  sync_block();
  if (tid() == 0) {
    const uint32_t before = atom_add_acq_rel<Scope::kGpu>(done, has_failed ? kFailure + 1 : 1u);
    EpEnd end = EpEnd::kEarly;
    if (before % kFailure == static_cast<uint32_t>(num_blocks()) - 1) {
      end = has_failed || before >= kFailure ? EpEnd::kLastWithFailure : EpEnd::kLast;
      st_relaxed<Scope::kGpu>(done, 0u);
      stg(x.epochs + static_cast<int>(half), epoch);
    }
    sts(scratch, static_cast<uint32_t>(end));
  }
  sync_block();
  return static_cast<EpEnd>(lds<uint32_t>(scratch));
}

// Tells every peer that its rows are there, in the last block. A failure of this rank ends the epoch for all:
// they need not wait for their deadlines. A peer that has not released its memory is left alone.
MOELA_DEVICE void ep_raise_arrived(const EpExchange& x, const EpRanks& ranks, bool is_abort, int threads) {
  const EpMemory& memory = x.memory;
  for (int peer = tid(); peer < memory.num_ranks; peer += threads) {
    if (ep_state_of(ranks, peer) == EpState::kSilent) continue;
    const EpHeader header = {.count = static_cast<uint32_t>(ep_count_of(ranks.ends, peer)),
                             .row_bytes = x.row_bytes,
                             .kind = x.kind,
                             .is_abort = is_abort};
    stg(ep_at<EpHeader>(memory, peer, memory.header_at(ranks.epoch, memory.rank)), header);
    st_release<Scope::kSys>(ep_at<uint64_t>(memory, peer, memory.arrived_at(memory.rank)), ranks.epoch);
  }
}

// Tells every source that what it sent is not needed any more, in the last block.
MOELA_DEVICE void ep_raise_released(const EpExchange& x, const EpRanks& ranks, int threads) {
  const EpMemory& memory = x.memory;
  for (int source = tid(); source < memory.num_ranks; source += threads) {
    if (ep_state_of(ranks, source) == EpState::kSilent) continue;
    st_release<Scope::kSys>(ep_at<uint64_t>(memory, source, memory.released_at(memory.rank)), ranks.epoch);
  }
}

}  // namespace moela::cuda::sm90
