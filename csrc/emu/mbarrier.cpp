// mbarrier objects. PTX ISA "Asynchronous barrier": phase, pending arrivals, expected bytes.
#include "emu/world.h"

namespace moela::emu {
namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;
constexpr int64_t kMaxBytes = (1 << 20) - 1;

std::string state_of(const Mbarrier& b) {
  return "in phase " + std::to_string(b.phase) + ", " + std::to_string(b.pending) + " of " +
         std::to_string(b.count) + " arrivals and " + std::to_string(b.bytes) + " bytes outstanding";
}

bool has_parity(const Mbarrier& b, uint32_t parity) {
  return (b.phase & 1) == EMU_MUTANT(1, parity & 1, ~parity & 1);
}

// A thread that waited for phase n must be known to have passed before phase n+1 completes: a slower one
// would find the parity of phase n again and wait for a phase that it should have skipped. This is checked by
// what the arrivals know, not by who was fast in this run.
void check_not_lapped(const Mbarrier& b) {
  if (!world->options.races) return;
  for (const Waited& w : b.waits) {
    if (w.phase + 1 != b.phase || b.arrived.all.seen.get(w.agent) >= w.tick) continue;
    set_fault("parity",
              "phase " + std::to_string(b.phase) + " of the mbarrier at " + smem_name(*b.block, b.offset) +
                  " completes, but nothing orders that after the wait for phase " + std::to_string(w.phase) +
                  " by " + name_of(w.agent) + " at " + place(w.where) +
                  ": a slow thread would find the parity of phase " + std::to_string(w.phase) + " again");
    return;
  }
}

void complete_phase_if_due(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  if (b.copies_in_phase > 0) {
    set_fault("mbarrier", "phase " + std::to_string(b.phase) + " of the mbarrier at " +
                              smem_name(*b.block, b.offset) +
                              " completes while a copy issued for it is under way: expect_tx was missing or "
                              "too small");
    return;
  }
  check_not_lapped(b);
  std::erase_if(b.waits, [&](const Waited& w) { return w.phase + 1 <= b.phase; });
  ++b.phase;
  b.pending = b.count;
  b.done.join(b.arrived.all);
  b.done_local.join(b.arrived_local.all);
  b.done.seen.set(b.traffic, b.phase);
  b.done_local.seen.set(b.traffic, b.phase);
}

// The phase that a wait with this parity is for: the current one, or the one that has just completed. The
// thread must know that the phase before it is over: otherwise it might, in another run, come when the one
// before that has just completed, and pass at once.
void note_wait(Mbarrier& b, uint32_t parity, Where where) {
  Fiber& me = current();
  const uint32_t phase = b.phase - ((b.phase & 1) == (parity & 1) ? 0 : 1);
  if (phase == ~0u) return;  // parity 1 on a fresh barrier: the phase before the first
  if (world->options.races && phase > 0 && me.self.known.seen.get(b.traffic) < phase)
    fail("parity",
         "a wait for parity " + std::to_string(parity) + " of the mbarrier at " +
             smem_name(*b.block, b.offset) + " finds phase " + std::to_string(phase) +
             ", but nothing orders it after phase " + std::to_string(phase - 1) +
             ": it could pass on the phase before that",
         where);
  b.waits.push_back({me.self.agent, me.self.tick, phase, where});
}

struct MbarrierWait final : Waiting {
  const Mbarrier* barrier;
  uint32_t parity;
  bool is_over() const override { return !has_parity(*barrier, parity); }
  std::string what() const override {
    return "mbarrier smem+" + std::to_string(barrier->offset) + " of " + name_of(*barrier->block) +
           ", parity " + std::to_string(parity) + " (" + state_of(*barrier) + ")";
  }
};

Mbarrier& own_mbarrier(uint32_t address, const char* what, Where where) {
  return find_mbarrier(resolve_own_shared(address, 8, what, where), what, where);
}

Mbarrier& awaited_mbarrier(uint32_t address, const char* what, Where where) {
  Mbarrier& b = find_mbarrier(resolve_shared(address, 8, what, where), what, where);
  Fiber& me = current();
  if (b.block != me.block) fail("mbarrier", "a wait for a barrier of another block", where);
  b.used.set(me.self.agent, me.self.tick);
  return b;
}

}  // namespace

Mbarrier& find_mbarrier(SharedRange at, const char* what, Where where) {
  auto it = at.block->mbarriers.find(at.offset);
  if (it == at.block->mbarriers.end())
    fail("mbarrier",
         std::string(what) + " on " + smem_name(*at.block, at.offset) + ", which is no initialised mbarrier",
         where);
  Mbarrier& b = it->second;
  const Self& self = current().self;
  if (b.initialiser != self.agent && self.known.seen.get(b.initialiser) < b.init_tick)
    fail("race",
         std::string(what) + ": the initialisation of the mbarrier at " + smem_name(*at.block, at.offset) +
             " is not ordered before this use",
         where);
  return b;
}

void mbarrier_init(uint32_t address, uint32_t count, Where where) {
  const SharedRange at = resolve_own_shared(address, 8, "mbarrier.init", where);
  Fiber& me = current();
  if (address % 8) fail("alignment", "an mbarrier is aligned to 8 bytes", where);
  if (count < 1 || count > kMaxCount) fail("mbarrier", "a count is in 1..2^20-1", where);
  // Whatever used these bytes before must have ended; a barrier that is initialised again is such a use too.
  if (at.block->mbarriers.contains(at.offset))
    fail(
        "mbarrier",
        "the mbarrier at " + smem_name(*at.block, at.offset) + " is initialised twice without mbarrier.inval",
        where);
  access_shared(at, 8, true, thread_actor(me, where), "mbarrier.init", where);
  Mbarrier b;
  b.block = at.block;
  b.offset = at.offset;
  b.count = b.pending = count;
  b.traffic = at.block->new_agent("a copy for the mbarrier at smem+" + std::to_string(at.offset),
                                  "a wait for the phase of that mbarrier at which the copy completes");
  b.initialiser = me.self.agent;
  b.init_tick = me.self.tick;
  at.block->mbarriers.emplace(at.offset, std::move(b));
}

void mbarrier_invalidate(uint32_t address, Where where) {
  Mbarrier& b = own_mbarrier(address, "mbarrier.inval", where);
  Fiber& me = current();
  const std::string name = smem_name(*b.block, b.offset);
  if (b.waiting > 0)
    fail("mbarrier",
         "mbarrier.inval of " + name + " while " + std::to_string(b.waiting) + " threads wait for it", where);
  if (b.copies_in_phase > 0)
    fail("mbarrier", "mbarrier.inval of " + name + " while a copy that completes there is under way", where);
  Clock known = me.self.known.seen;
  known.set(me.self.agent, me.self.tick);
  if (world->options.races && !known.knows_all_of(b.used))
    fail("race", "mbarrier.inval of " + name + " is not ordered after every arrival and wait there", where);
  const SharedRange at = {b.block, b.offset};
  b.block->mbarriers.erase(b.offset);
  access_shared(at, 8, true, thread_actor(me, where), "mbarrier.inval", where);
}

// What the thread does later has a higher tick, so that others can tell whether they know of the fence.
void fence_mbarrier_init() {
  Fiber& me = current();
  for (auto& [offset, b] : me.block->mbarriers)
    if (b.initialiser == me.self.agent && b.fence_tick == 0) b.fence_tick = me.self.tick;
  ++me.self.tick;
}

void check_published(const Mbarrier& b, const char* what, Where where) {
  const Self& self = current().self;
  const bool is_published =
      b.fence_tick > 0 && (b.initialiser == self.agent || self.known.seen.get(b.initialiser) >= b.fence_tick);
  if (!is_published)
    fail("proxy",
         std::string(what) + " at the mbarrier " + smem_name(*b.block, b.offset) +
             ", whose initialisation no fence.mbarrier_init has followed before",
         where);
}

void mbarrier_arrive(uint32_t address, uint32_t arrivals, int64_t expect_bytes, Window window, Where where) {
  const char* what = "mbarrier.arrive";
  Mbarrier& b = window == Window::kOwn ? own_mbarrier(address, what, where)
                                       : find_mbarrier(resolve_shared(address, 8, what, where), what, where);
  Fiber& me = current();
  ++world->effects;
  b.used.set(me.self.agent, me.self.tick);
  if (expect_bytes < 0 || b.bytes + expect_bytes > kMaxBytes)
    fail("mbarrier", "more than 2^20-1 bytes expected at " + smem_name(*b.block, b.offset), where);
  b.bytes += expect_bytes;
  if (arrivals == 0) return;
  if (b.pending < arrivals)
    fail("mbarrier",
         "more arrivals than its count at the mbarrier " + smem_name(*b.block, b.offset) + " (" +
             state_of(b) + ")",
         where);
  if (b.block != me.block) {
    check_published(b, "an arrival from another block", where);
    b.remote_arrivals[me.self.agent] = me.self.tick;
  }
  if (b.block == me.block) b.arrived_local.release(me.self);
  b.arrived.release(me.self);
  b.pending -= arrivals;
  complete_phase_if_due(b);
}

bool mbarrier_test(uint32_t address, uint32_t parity, bool is_cluster_wide, Where where) {
  Mbarrier& b = awaited_mbarrier(address, "mbarrier.test_wait", where);
  if (has_parity(b, parity)) {
    note_look(&b, where);
    return false;
  }
  note_wait(b, parity, where);
  current().self.known.join(is_cluster_wide ? b.done : b.done_local);
  return true;
}

void mbarrier_wait(uint32_t address, uint32_t parity, bool is_cluster_wide, Where where) {
  Mbarrier& b = awaited_mbarrier(address, "mbarrier.try_wait", where);
  note_wait(b, parity, where);
  MbarrierWait waiting;
  waiting.barrier = &b;
  waiting.parity = parity;
  ++b.waiting;
  wait_until(waiting, where);
  --b.waiting;
  current().self.known.join(is_cluster_wide ? b.done : b.done_local);
}

void complete_bytes(Mbarrier& b, int64_t bytes) {
  b.bytes -= bytes;
  --b.copies_in_phase;
  complete_phase_if_due(b);
}

}  // namespace moela::emu
