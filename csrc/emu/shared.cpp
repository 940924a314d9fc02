// Shared memory of the own block and of the others of the cluster, with every access checked.
#include <cstring>

#include "emu/world.h"

namespace moela::emu {
namespace {

std::string conflict_text(const Conflict& found, bool is_write, const Actor& actor, const char* what,
                          const std::string& where) {
  const std::string by = std::string(what) + " by " + name_of(actor.access.agent);
  const std::string other = found.kind == Conflict::kUninitialised ? "" : name_of(found.other.agent);
  switch (found.kind) {
    case Conflict::kUninitialised: return by + " reads " + where + ", which nobody has written";
    case Conflict::kRead: return by + " overwrites " + where + " while " + other + " may still be reading it";
    case Conflict::kWrite:
      return by + (is_write ? " overwrites " : " reads ") + where + " while " + other +
             " may still be writing it";
    case Conflict::kProxy:
      return by + (is_write ? " overwrites " : " reads ") + where + ", written by " + other + ", with no " +
             actor.fence + " between";
    default:
      return by + " reads " + where + " through the read-only path, but this kernel writes it: " + other;
  }
}

const char* conflict_kind(Conflict::Kind kind) {
  switch (kind) {
    case Conflict::kUninitialised: return "uninitialised";
    case Conflict::kProxy: return "proxy";
    case Conflict::kReadOnly: return "read-only";
    default: return "race";
  }
}

void check_alignment(uint32_t address, uint32_t bytes, const char* what, Where where) {
  if (address % bytes)
    fail("alignment",
         std::string(what) + " of " + std::to_string(bytes) + " bytes at address " + std::to_string(address),
         where);
}

// A generic access to the 8 bytes of a live mbarrier: its value is opaque, and a store destroys it.
void check_no_mbarrier(SharedRange range, uint32_t bytes, const char* what, Where where) {
  auto it = range.block->mbarriers.lower_bound(range.offset < 8 ? 0 : range.offset - 7);
  if (it != range.block->mbarriers.end() && it->first < range.offset + bytes)
    fail("mbarrier", std::string(what) + " touches the mbarrier at " + smem_name(*range.block, it->first),
         where);
}

}  // namespace

void fail_with(const Conflict& found, bool is_write, const Actor& actor, const char* what,
               const std::string& memory, Where where) {
  std::string text = conflict_text(found, is_write, actor, what, memory);
  if (found.kind != Conflict::kUninitialised)
    text += "\n    the other access is at " + place(world->sites[found.other.site]);
  if (found.kind == Conflict::kRead || found.kind == Conflict::kWrite)
    text += "\n    missing between them: " + remedy_for(found.other.agent);
  if (found.kind == Conflict::kUninitialised) text += "\n    missing: what fills it, or the wait for that";
  fail(conflict_kind(found.kind), text, where);
}

SharedRange resolve_shared(uint32_t address, uint32_t bytes, const char* what, Where where) {
  Block* block = current().block;
  if (address >> kRankShift) {
    const uint32_t rank = (address >> kRankShift) - 1;
    if (rank >= block->cluster->blocks.size())
      fail("bounds",
           std::string(what) + " to rank " + std::to_string(rank) + ", which the cluster does not have",
           where);
    block = block->cluster->blocks[rank];
  }
  const uint32_t in_window = address & ((1u << kRankShift) - 1);
  const int64_t offset = int64_t{in_window} - kSmemWindow;
  if (offset < 0 || offset + bytes > block->grid->shape.smem_bytes)
    fail("bounds",
         std::string(what) + " touches bytes " + std::to_string(offset) + " to " +
             std::to_string(offset + bytes) + " of the shared memory of " + name_of(*block) + ", which has " +
             std::to_string(block->grid->shape.smem_bytes),
         where);
  if (block->is_done())
    fail("exit", std::string(what) + " reaches into " + name_of(*block) + ", which has exited", where);
  return {block, static_cast<uint32_t>(offset)};
}

SharedRange resolve_own_shared(uint32_t address, uint32_t bytes, const char* what, Where where) {
  if (address >> kRankShift)
    fail("bounds",
         std::string(what) + " takes an address of the own block, and this one is from mapa() for rank " +
             std::to_string((address >> kRankShift) - 1),
         where);
  return resolve_shared(address, bytes, what, where);
}

Actor thread_actor(Fiber& fiber, Where where) {
  return {.access = {fiber.self.agent, fiber.self.tick, site_of(where), Proxy::kGeneric},
          .seen = &fiber.self.known.seen,
          .before = &fiber.block->before,
          .self = fiber.self.agent};
}

Actor async_actor(Agent agent, uint32_t tick, AsyncSide side, Where where) {
  const Self& self = current().self;
  const bool is_shared = side == AsyncSide::kShared;
  return {.access = {agent, tick, site_of(where), Proxy::kAsync},
          .seen = &self.known.seen,
          .fenced = is_shared ? &self.known.fenced_shared : &self.known.fenced_global,
          .own_fenced = is_shared ? self.fenced_shared_tick : self.fenced_global_tick,
          .self = self.agent};
}

void access_shared(SharedRange range, uint32_t bytes, bool is_write, const Actor& actor, const char* what,
                   Where where) {
  check_no_mbarrier(range, bytes, what, where);
  if (is_write) ++world->effects;
  if (!world->options.races) return;
  Shadow& shadow = *range.block->shadow;
  const Conflict found =
      is_write ? shadow.write(range.offset, bytes, actor) : shadow.read(range.offset, bytes, actor);
  if (found)
    fail_with(found, is_write, actor, what, smem_name(*range.block, static_cast<uint32_t>(found.offset)),
              where);
}

void load_shared(uint32_t address, void* value, uint32_t bytes, Window window, Where where) {
  check_alignment(address, bytes, "a shared load", where);
  const SharedRange range = window == Window::kOwn
                                ? resolve_own_shared(address, bytes, "a shared load", where)
                                : resolve_shared(address, bytes, "a shared load", where);
  access_shared(range, bytes, false, thread_actor(current(), where), "a shared load", where);
  std::memcpy(value, range.data(), bytes);
  note_look(range.data(), where);
}

void store_shared(uint32_t address, const void* value, uint32_t bytes, Window window, Where where) {
  check_alignment(address, bytes, "a shared store", where);
  const SharedRange range = window == Window::kOwn
                                ? resolve_own_shared(address, bytes, "a shared store", where)
                                : resolve_shared(address, bytes, "a shared store", where);
  access_shared(range, bytes, true, thread_actor(current(), where), "a shared store", where);
  std::memcpy(range.data(), value, bytes);
}

uint32_t map_shared_rank(uint32_t address, int rank, Where where) {
  if (rank < 0 || rank >= static_cast<int>(current().block->cluster->blocks.size()))
    fail("bounds", "mapa to rank " + std::to_string(rank) + ", which the cluster does not have", where);
  return (address & ((1u << kRankShift) - 1)) | static_cast<uint32_t>(rank + 1) << kRankShift;
}

// Later writes get a later tick, so that they do not count as fenced.
void fence_proxy_async(bool shared, bool global) {
  Self& self = current().self;
  if (shared) self.fenced_shared_tick = self.tick;
  if (global) {
    self.fenced_global_tick = self.tick;
    self.known.fenced_global.join(self.known.seen);
  }
  ++self.tick;
  if (shared) fence_mbarrier_init();
}

// setmaxnreg is for whole warpgroups: "" or the one whose warps disagree.
std::string uneven_registers(const Block& block) {
  for (const auto& fiber : block.fibers) {
    const Fiber& first = *block.fibers[static_cast<size_t>(fiber->thread / 128 * 128)];
    if (fiber->registers != first.registers || fiber->register_changes != first.register_changes)
      return "warps of warpgroup " + std::to_string(fiber->thread / 128) + " of " + name_of(block) +
             " have executed different setmaxnreg: all four must execute the same";
  }
  return "";
}

// Everything done to this block's memory from outside its threads - by copies, tensor cores and other blocks
// - must be known to have ended when its last thread ends.
void check_block_exit(Block& block) {
  const Clock& seen = block.exited.all.seen;
  auto is_foreign = [&](Agent agent) {
    return slot_of(agent) != block.slot || local_of(agent) >= static_cast<uint32_t>(block.threads());
  };
  std::string fault;
  block.shadow->for_each([&](size_t offset, const Access& access, bool is_write) {
    if (!fault.empty() || !is_foreign(access.agent) || seen.get(access.agent) >= access.tick) return;
    fault = name_of(block) + " ends while " + name_of(access.agent) + " may still be " +
            (is_write ? "writing" : "reading") + " smem+" + std::to_string(offset) + "; that access is at " +
            place(world->sites[access.site]);
  });
  for (const auto& [offset, barrier] : block.mbarriers) {
    for (const auto& [agent, tick] : barrier.remote_arrivals)
      if (fault.empty() && seen.get(agent) < tick)
        fault = name_of(block) + " ends while " + name_of(agent) + " may still arrive at its mbarrier smem+" +
                std::to_string(offset);
    if (fault.empty() && barrier.copies_in_phase > 0)
      fault = name_of(block) + " ends while a copy that completes at its mbarrier smem+" +
              std::to_string(offset) + " is under way";
  }
  if (fault.empty()) fault = uneven_registers(block);
  if (!fault.empty()) set_fault("exit", fault);
}

}  // namespace moela::emu
