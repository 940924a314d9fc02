// Barriers among the threads of a block, a cluster and a warp; warp collectives; registers.
#include <cstring>

#include "emu/world.h"

namespace moela::emu {
namespace {

struct GenerationWait final : Waiting {
  const uint32_t* generation;
  uint32_t old;
  const int *arrived, *needed;
  std::string name;
  bool is_over() const override { return *generation != old; }
  std::string what() const override {
    return name + " (" + std::to_string(*arrived) + " of " + std::to_string(*needed) +
           " threads have arrived)";
  }
};

// A thread arrives once per generation, and knows that the one before is over: otherwise the hardware might
// count it there. Two groups of threads that share an id by mistake are found so.
void check_turn(NamedBarrier& b, int id, Where where) {
  Fiber& me = current();
  if (b.completion == 0) b.completion = me.block->new_agent("barrier " + std::to_string(id), "");
  if (b.has_arrived[static_cast<size_t>(me.thread)])
    fail("barrier",
         "a second arrival at barrier " + std::to_string(id) + " of " + name_of(*me.block) +
             " before its other threads have arrived (" + std::to_string(b.arrived) + " of " +
             std::to_string(b.needed) + ")",
         where);
  if (world->options.races && me.self.known.seen.get(b.completion) < b.generation)
    fail("barrier",
         "an arrival at barrier " + std::to_string(id) + " of " + name_of(*me.block) +
             ", but nothing orders it after the last use of that barrier: the arrivals may be counted "
             "together; wait for the last use, or take another id",
         where);
}

// Arrives at barrier `id`; returns the generation that it arrived for.
uint32_t arrive(NamedBarrier& b, int id, int threads, Where where) {
  Fiber& me = current();
  // The whole block, those that have exited too: the hardware would not wait for them, but whether they have
  // exited before this barrier or after it must not matter.
  if (threads == 0) threads = me.block->threads();
  if (threads % 32) fail("barrier", "the count of a named barrier is a multiple of 32", where);
  if (b.arrived > 0 && b.needed != threads)
    fail("barrier",
         "barrier " + std::to_string(id) + " is used with " + std::to_string(threads) + " threads and with " +
             std::to_string(b.needed),
         where);
  check_turn(b, id, where);
  b.needed = threads;
  b.gather.release(me.self);
  b.has_arrived.set(static_cast<size_t>(me.thread));
  const uint32_t generation = b.generation;
  if (++b.arrived == threads) {
    b.arrived = 0;
    b.has_arrived.reset();
    ++b.generation;
    b.released = b.gather.all;
    b.released.seen.set(b.completion, b.generation);
  }
  return generation;
}

}  // namespace

void barrier_sync(int id, int threads, Where where) {
  Fiber& me = current();
  NamedBarrier& b = me.block->named[id];
  GenerationWait waiting;
  waiting.old = arrive(b, id, threads, where);
  waiting.generation = &b.generation;
  waiting.arrived = &b.arrived;
  waiting.needed = &b.needed;
  waiting.name = "barrier " + std::to_string(id);
  if (!waiting.is_over()) wait_until(waiting, where);
  me.self.known.join(b.released);
}

void barrier_arrive(int id, int threads, Where where) {
  arrive(current().block->named[id], id, threads, where);
}

void cluster_arrive(bool is_release, Where where) {
  Fiber& me = current();
  Cluster& c = *me.block->cluster;
  if (me.cluster_arrivals != c.generation)
    fail("barrier", "a second barrier.cluster.arrive without a wait between", where);
  if (is_release) c.gather.release(me.self);
  ++me.cluster_arrivals;
  if (++c.arrived == static_cast<int>(c.blocks.size()) * me.block->threads()) {
    c.arrived = 0;
    ++c.generation;
    c.released = c.gather.all;
  }
}

void cluster_wait(Where where) {
  struct ClusterWait final : Waiting {
    const Cluster* cluster;
    uint32_t until;
    bool is_over() const override { return cluster->generation >= until; }
    std::string what() const override {
      return "barrier.cluster (" + std::to_string(cluster->arrived) + " threads of the cluster have arrived)";
    }
  };
  Fiber& me = current();
  ClusterWait waiting;
  waiting.cluster = me.block->cluster;
  waiting.until = me.cluster_arrivals;
  if (me.has_cluster_waited_for == me.cluster_arrivals)
    fail("barrier", "barrier.cluster.wait without an arrive", where);
  wait_until(waiting, where);
  me.has_cluster_waited_for = me.cluster_arrivals;
  me.self.known.join(me.block->cluster->released);
}

WarpWords warp_exchange(Collective kind, const uint32_t* words, int count, Where where) {
  Fiber& me = current();
  Warp& w = me.block->warps[me.thread / 32];
  if (w.arrived > 0 && w.kind != kind)
    fail("divergence", "lanes of warp " + std::to_string(me.thread / 32) + " are in different collectives",
         where);
  if (w.arrived > 0 && w.warp_reads != me.warp_reads)
    fail("divergence",
         "lanes of warp " + std::to_string(me.thread / 32) +
             " come here with different numbers of calls of warp(), which is a shuffle of all of them",
         where);
  w.kind = kind;
  w.warp_reads = me.warp_reads;
  const uint32_t generation = w.generation;
  WarpWords& exchanged = w.words[generation & 1];
  if (count > 0)
    std::memcpy(exchanged.of[me.thread % 32], words, static_cast<size_t>(count) * sizeof(uint32_t));
  // No other orders memory.
  const bool is_sync = kind == Collective::kSync || kind == Collective::kPublishMap;
  if (is_sync) w.gather.release(me.self);
  if (++w.arrived == 32) {
    w.arrived = 0;
    ++w.generation;
    if (is_sync) w.released = w.gather.all;
  } else {
    static const int kLanes = 32;
    GenerationWait waiting;
    waiting.generation = &w.generation;
    waiting.old = generation;
    waiting.arrived = &w.arrived;
    waiting.needed = &kLanes;
    waiting.name = "a collective of warp " + std::to_string(me.thread / 32);
    wait_until(waiting, where);
  }
  if (is_sync) me.self.known.join(w.released);
  return exchanged;
}

// setmaxnreg: a decrease gives registers to the block's pool, an increase waits until the pool has them.
void set_registers(int count, bool is_increase, Where where) {
  struct RegisterWait final : Waiting {
    const Block* block;
    int needed;
    bool is_over() const override { return block->free_registers >= needed; }
    std::string what() const override {
      return "setmaxnreg.inc (" + std::to_string(needed) + " registers; the block has " +
             std::to_string(block->free_registers) + " to give)";
    }
  };
  Fiber& me = current();
  warp_exchange(Collective::kRegisters, nullptr, 0, where);
  if (is_increase ? count < me.registers : count > me.registers)
    fail("registers",
         "setmaxnreg." + std::string(is_increase ? "inc" : "dec") + " to " + std::to_string(count) +
             " from " + std::to_string(me.registers),
         where);
  RegisterWait waiting;
  waiting.block = me.block;
  waiting.needed = count - me.registers;
  wait_until(waiting, where);
  me.block->free_registers -= waiting.needed;
  me.registers = count;
  ++me.register_changes;
}

void grid_dependency_wait() {
  Fiber& me = current();
  me.self.known.seen.set(world->previous_kernels.at(me.block->rank), 1);
}

// On a GPU a shuffle: it is counted, and compared where the lanes meet next.
int read_warp() {
  Fiber& me = current();
  ++me.warp_reads;
  return me.thread / 32;
}

Ids ids() {
  const Fiber& me = current();
  const Block& b = *me.block;
  return {me.thread, b.index, b.grid->shape.grid, b.cluster_rank, b.grid->shape.cluster};
}

}  // namespace moela::emu
