// The loading side of mla_sparse: rows that entries name, gathered by one warpgroup, and queries by TMA.
#pragma once

#include "cuda/mla_sparse/mla_rows.cuh"

namespace moela::cuda::sm90 {

// Of a unit one block of entries.
struct MlaSparseBlock {
  int token, block, entries;
  int new_tile;  // of heads, whose queries come with the unit's first block; -1: they are there
};

// Blocks of all units that have any.
class MlaSparseBlocks {
 public:
  MOELA_DEVICE explicit MlaSparseBlocks(const MlaSparseParams& p) : units_(p) {}

  MOELA_DEVICE bool next(MlaSparseBlock* of) {
    const bool is_first = block_ >= unit_.end;
    while (block_ >= unit_.end) {
      if (!units_.next(&unit_)) return false;
      block_ = unit_.begin;
    }
    *of = {unit_.token, block_++, unit_.entries, is_first ? unit_.tile : -1};
    return true;
  }

 private:
  MlaSparseUnits units_;
  MlaSparseUnit unit_ = {};
  int block_ = 0;
};

// Where the rows are that this warp's entries of a block name: lane l has entry l % kRowsOfWarp. Bytes from
// the start of the cache; -1: it names none.
struct MlaSlots {
  int64_t offset = -1;

  // This lane's row of the four from `first` on, or null.
  MOELA_DEVICE const uint8_t* row(const MlaSparseArgs& a, int first) const {
    const int from = first + lane_row();
    const auto low = shfl(static_cast<uint32_t>(offset), from);
    const auto high = shfl(static_cast<int32_t>(offset >> 32), from);
    const int64_t at = static_cast<int64_t>(high) << 32 | low;
    return at < 0 ? nullptr : static_cast<const uint8_t*>(a.cache) + at;
  }
  // Bit i: entry i names a slot.
  MOELA_DEVICE uint16_t named() const { return static_cast<uint16_t>(vote_ballot(offset >= 0)); }
};

template <class C>
constexpr int kRowsOfWarp = C::kKeys / C::kLoadingWarps;

// What this lane's entry of the block says, or a negative number.
template <class C>
MOELA_DEVICE int load_entry(const MlaSparseArgs& a, const MlaSparseBlock& of, int first_row) {
  const int entry = of.block * C::kKeys + first_row + lane() % kRowsOfWarp<C>;
  return entry < of.entries ? ldg(a.indices + of.token * a.stride_it + entry) : -1;
}

template <class C>
MOELA_DEVICE MlaSlots find_slots(const MlaSparseArgs& a, int slot) {
  constexpr int kElementBytes = C::kHasBytes ? 1 : 2;
  if (slot < 0 || slot >= a.num_pages * a.page_size) return {};
  const auto page_size = static_cast<uint32_t>(a.page_size);
  const uint32_t page = static_cast<uint32_t>(slot) / page_size,
                 rest = static_cast<uint32_t>(slot) % page_size;
  return {(page * a.stride_page + rest * a.stride_slot) * kElementBytes};
}

// One thread: its warp's panels. Heads from H on lie outside of q and are loaded as zeros.
template <class C>
MOELA_DEVICE void load_queries(const MlaSparseParams& p, const MlaSparseBlock& of, int first) {
  mbarrier_arrive_expect_tx(
      q_full<C>(),
      static_cast<uint32_t>((C::kPanels - first + C::kLoadingWarps - 1) / C::kLoadingWarps) * C::kPanelBytes);
  for (int panel = first; panel < C::kPanels; panel += C::kLoadingWarps)
    tma_load_3d(smem_base() + C::kSmemQ + static_cast<uint32_t>(panel) * C::kPanelBytes, &p.q,
                panel * C::kPanel, of.new_tile * C::kRows, of.token, q_full<C>());
}

// A stream of steps, each half of four rows, from one block into the next: those of kAhead steps are under
// way while one is stored.
template <class C>
MOELA_DEVICE void load_units(const MlaSparseParams& p) {
  using HalfRow = std::conditional_t<C::kHasBytes, MlaHalfRowOfBytes<C>, MlaHalfRowOfFloats<C>>;
  constexpr int kSteps = kRowsOfWarp<C> / kMlaRowsAtOnce * 2, kRing = 4, kAhead = HalfRow::kAhead;
  static_assert(kSteps % kRing == 0, "a step has the same registers in every block");
  const MlaSparseArgs& a = p.args;
  const bool issues = elect_one();
  if (issues) tma_prefetch_map(&p.q);
  const int index = warp() - C::kFirstLoadingWarp, first_row = index * kRowsOfWarp<C>;
  MlaPosition<C> at;
  uint32_t q_parity = 0;
  MlaSparseBlocks blocks(p);
  MlaSparseBlock now, next;
  if (!blocks.next(&now)) return;
  MlaSlots slots = find_slots<C>(a, load_entry<C>(a, now, first_row)), next_slots;
  HalfRow ring[kRing];
  const uint8_t* row = nullptr;
  const auto load = [&](const MlaSlots of, int step, int i) {
    if (i % 2 == 0) row = of.row(a, step / 2 * kMlaRowsAtOnce);
    ring[i % kRing].load(row, i % 2);
  };
  MOELA_UNROLL
  for (int step = 0; step < kAhead; ++step) load(slots, step, step);
  for (bool is_last = false; !is_last; now = next, slots = next_slots, at.advance()) {
    is_last = !blocks.next(&next);
    const int next_entry = is_last ? -1 : load_entry<C>(a, next, first_row);
    const SmemAddr tile = smem_base() + C::kSmemKv + static_cast<uint32_t>(at.stage) * C::kTileBytes;
    const uint16_t named = slots.named();
    mbarrier_wait(kv_empty<C>(at.stage), at.parity ^ 1);
    if (lane() == 0) sts(smem_named<C>(at.stage) + static_cast<uint32_t>(index) * 2, named);
    for (int step = 0; step < kSteps; step += kRing) {
      if (step + kRing == kSteps) next_slots = find_slots<C>(a, next_entry);
      MOELA_UNROLL
      for (int i = 0; i < kRing; ++i) {
        const int ahead = step + i + kAhead;
        load(ahead < kSteps ? slots : next_slots, ahead % kSteps, i + kAhead);
        sync_warp();  // the loads come before it, whatever the compiler would rather do first
        ring[i].store(tile, first_row + (step + i) / 2 * kMlaRowsAtOnce + lane_row(), i % 2);
      }
    }
    fence_proxy_async_shared();
    arrive_warp(kv_full<C>(at.stage));
    if (now.new_tile < 0) continue;
    // After the first rows, so that these need not wait until the queries before are done with.
    mbarrier_wait(q_empty<C>(), q_parity ^ 1);
    sync_warp();  // all lanes have seen that phase before one begins the next
    if (issues) load_queries<C>(p, now, index);
    q_parity ^= 1;
  }
}

}  // namespace moela::cuda::sm90
