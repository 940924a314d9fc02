// Time passes only when no thread can go on and no copy is under way: who waits with a deadline waits in vain
// where it ends.
#include <algorithm>

#include "emu/world.h"

namespace moela::emu {

uint64_t global_time() { return world->now; }

void sleep(uint64_t nanoseconds, Where where) {
  struct Sleep final : Waiting {
    uint64_t until;
    bool is_over() const override { return world->now >= until; }
    std::string what() const override { return "nanosleep"; }
    uint64_t ends_at() const override { return until; }
  };
  Sleep waiting;
  waiting.until = world->now + nanoseconds;
  wait_until(waiting, where);
}

bool let_time_pass() {
  uint64_t next = Waiting::kNever;
  for (const Fiber* f : world->live)
    if (!f->is_done && f->waiting != nullptr) next = std::min(next, f->waiting->ends_at());
  if (next == Waiting::kNever) return false;
  world->now = std::max(world->now, next);
  ++world->effects;
  return true;
}

}  // namespace moela::emu
