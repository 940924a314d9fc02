// What a thread knows of the others' past, and how synchronisation passes it on.
#pragma once

#include "emu/clock.h"

namespace moela::emu {

// Two clocks follow fence.proxy.async, one the release half of fence.proxy.tensormap. For shared memory a
// fence publishes the fencing thread's own writes only: all writers fence, then barrier, then one thread
// issues (style.md). For global memory the formal rule of PTX holds: a fence publishes whatever the fencing
// thread has seen, so a consumer may fence for producers in other blocks.
struct Knowledge {
  Clock seen;
  Clock fenced_shared;
  Clock fenced_global;
  Clock released_maps;

  void join(const Knowledge& other) {
    seen.join(other.seen);
    fenced_shared.join(other.fenced_shared);
    fenced_global.join(other.fenced_global);
    released_maps.join(other.released_maps);
  }
  bool is_same(const Knowledge& other) const {
    return seen.is_same(other.seen) && fenced_shared.is_same(other.fenced_shared) &&
           fenced_global.is_same(other.fenced_global) && released_maps.is_same(other.released_maps);
  }
};

// A thread's knowledge. Its own tick is kept apart, so that threads can share the rest by pointer.
struct Self {
  Agent agent = 0;
  uint32_t tick = 1;                // of its next access; rises with every release
  uint32_t fenced_shared_tick = 0;  // its own writes up to here are fenced
  uint32_t fenced_global_tick = 0;
  uint32_t released_maps_tick = 0;
  Knowledge known;
};

// Where the knowledge of arriving threads comes together: a barrier.
class Gather {
 public:
  // Takes what the thread knows and has done so far; what it does later has a higher tick.
  void release(Self& self) {
    if (!last_.is_same(self.known)) {
      all.join(self.known);
      last_ = self.known;
    }
    all.seen.set(self.agent, self.tick);
    if (self.fenced_shared_tick > 0) all.fenced_shared.set(self.agent, self.fenced_shared_tick);
    if (self.fenced_global_tick > 0) all.fenced_global.set(self.agent, self.fenced_global_tick);
    if (self.released_maps_tick > 0) all.released_maps.set(self.agent, self.released_maps_tick);
    ++self.tick;
  }

  Knowledge all;

 private:
  Knowledge last_;  // most threads of a block arrive with one knowledge: join it once
};

}  // namespace moela::emu
