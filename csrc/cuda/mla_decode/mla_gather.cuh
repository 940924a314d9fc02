// The loading side of a cache that TMA cannot read: rows that lie anywhere, or have bytes to be converted,
// gathered by one warpgroup; queries by TMA.
//
// Source says what is gathered (mla_sparse_load.cuh, mla_load_bytes.cuh): next(&block), the blocks of all
// pieces; entry(block, i), what row i is found by, loaded well before offset(block, i, entry), where it is,
// in bytes from the start of the cache; both negative where there is none; note(stage, quarter, found), which
// rows of 16 there are; has_new_queries(block) and load_queries(block, issues), by a warp of which one thread
// issues.
#pragma once

#include "cuda/mla_decode/mla_rows.cuh"

namespace moela::cuda::sm90 {

// Where this warp's rows of a block are: lane l has row l % kRowsOfWarp.
struct MlaSlots {
  int64_t offset = -1;

  // This lane's row of the four from `first` on, or null.
  MOELA_DEVICE const uint8_t* row(const void* cache, int first) const {
    const int from = first + lane_row();
    const auto low = shfl(static_cast<uint32_t>(offset), from);
    const auto high = shfl(static_cast<int32_t>(offset >> 32), from);
    const int64_t at = static_cast<int64_t>(high) << 32 | low;
    return at < 0 ? nullptr : static_cast<const uint8_t*>(cache) + at;
  }
  // Bit i: there is a row i.
  MOELA_DEVICE uint16_t found() const { return static_cast<uint16_t>(vote_ballot(offset >= 0)); }
};

template <class C>
constexpr int kRowsOfWarp = C::kKeys / C::kLoadingWarps;

// A stream of steps, each half of four rows, from one block into the next: those of kAhead steps are under
// way while one is stored.
template <class C, class Source>
MOELA_DEVICE void gather_rows(Source source, const void* cache) {
  using HalfRow = std::conditional_t<C::kHasBytes, MlaHalfRowOfBytes<C>, MlaHalfRowOfFloats<C>>;
  constexpr int kSteps = kRowsOfWarp<C> / kMlaRowsAtOnce * 2, kRing = 4, kAhead = HalfRow::kAhead;
  // Rows of the next block are looked up a round of the ring after their entries are loaded, or, if there is
  // one round only, as late as may be.
  constexpr int kLookUp = kSteps > kRing ? 0 : kRing - kAhead;
  static_assert(kSteps % kRing == 0, "a step has the same registers in every block");
  const int index = warp() - C::kFirstLoadingWarp, first_row = index * kRowsOfWarp<C>;
  const auto own_row = [&] { return first_row + lane() % kRowsOfWarp<C>; };
  const bool issues = elect_one();
  MlaPosition<C> at;
  uint32_t q_parity = 0;
  typename Source::Block now = {}, next = {};
  if (!source.next(&now)) return;
  MlaSlots slots = {source.offset(now, own_row(), source.entry(now, own_row()))}, next_slots;
  HalfRow ring[kRing];
  const uint8_t* row = nullptr;
  const auto load = [&](const MlaSlots of, int step, int i) {
    if (i % 2 == 0) row = of.row(cache, step / 2 * kMlaRowsAtOnce);
    ring[i % kRing].load(row, i % 2);
  };
  MOELA_UNROLL
  for (int step = 0; step < kAhead; ++step) load(slots, step, step);
  for (bool is_last = false; !is_last; now = next, slots = next_slots, at.advance()) {
    is_last = !source.next(&next);
    const int next_entry = is_last ? -1 : source.entry(next, own_row());
    const SmemAddr tile = smem_base() + C::kSmemKv + static_cast<uint32_t>(at.stage) * C::kTileBytes;
    const uint16_t found = slots.found();
    mbarrier_wait(kv_empty<C>(at.stage), at.parity ^ 1);
    source.note(at.stage, index, found);
    for (int step = 0; step < kSteps; step += kRing) {
      MOELA_UNROLL
      for (int i = 0; i < kRing; ++i) {
        const int ahead = step + i + kAhead;
        if (i == kLookUp && step + kRing == kSteps) next_slots = {source.offset(next, own_row(), next_entry)};
        load(ahead < kSteps ? slots : next_slots, ahead % kSteps, i + kAhead);
        sync_warp();  // the loads come before it, whatever the compiler would rather do first
        ring[i].store(tile, first_row + (step + i) / 2 * kMlaRowsAtOnce + lane_row(), i % 2);
      }
    }
    fence_proxy_async_shared();
    arrive_warp(kv_full<C>(at.stage));
    if (!source.has_new_queries(now)) continue;
    // After the first rows, so that these need not wait until the queries before are done with.
    mbarrier_wait(q_empty<C>(), q_parity ^ 1);
    sync_warp();  // all lanes have seen that phase before one begins the next
    source.load_queries(now, issues);
    q_parity ^= 1;
  }
}

}  // namespace moela::cuda::sm90
