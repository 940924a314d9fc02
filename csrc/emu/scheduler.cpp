// Runs the threads of all live blocks, and lands copies when the schedule says so.
#include <algorithm>

#include "emu/world.h"

namespace moela::emu {

World* world = nullptr;

#ifdef EMU_MUTATE
int mutant = 0;
#endif

namespace {

constexpr int kMaxThreads = 1024, kMaxCluster = 8, kRegistersPerSm = 65536;
constexpr uint32_t kPatience = 1000;   // fruitless passes until a loop that looks for something is a deadlock
constexpr uint32_t kLooksInARow = 16;  // at few places, until a thread counts as looking for something

// Continues with the scheduler until it picks this thread again.
void leave_fiber() {
  Fiber& me = current();
  ++world->report.switches;
  switch_stack(&me.stack->pointer, world->scheduler_stack);
}

void end_thread(Fiber& fiber) {
  Block& block = *fiber.block;
  if (!fiber.in_flight.empty()) fail("exit", "a thread ends with wgmma in flight", fiber.where);
  if (fiber.has_open_stores)
    fail("exit", "a thread ends with bulk stores that it has not committed", fiber.where);
  block.exited.release(fiber.self);
  ++world->effects;
  fiber.is_done = true;
  if (--block.live == 0) check_block_exit(block);
}

void fiber_main() {
  Fiber& me = current();
  me.block->grid->body();
  end_thread(me);
  for (;;) leave_fiber();
}

void add_fiber(Block& block, int thread, int registers, const Knowledge& known) {
  auto fiber = std::make_unique<Fiber>();
  fiber->block = &block;
  fiber->thread = thread;
  fiber->self.agent = block.slot << kLocalBits | static_cast<uint32_t>(thread);
  fiber->self.known = known;
  fiber->registers = registers;
  if (world->free_stacks.empty()) {
    fiber->stack = std::make_unique<Stack>(fiber_main);
  } else {
    fiber->stack = std::move(world->free_stacks.back());
    fiber->stack->reset(fiber_main);
    world->free_stacks.pop_back();
  }
  world->live.push_back(fiber.get());
  block.fibers.push_back(std::move(fiber));
}

// What a grid knows that follows this one in its stream: all of it, in every proxy.
Knowledge end_of(const Grid& grid) {
  Knowledge end;
  for (const Block& block : world->blocks) {
    if (block.grid != &grid) continue;
    end.join(block.exited.all);
    const auto agents = static_cast<uint32_t>(block.threads()) + static_cast<uint32_t>(block.agents.size());
    for (uint32_t local = 0; local < agents; ++local) {
      end.seen.set(block.slot << kLocalBits | local, UINT32_MAX);
      end.fenced_global.set(block.slot << kLocalBits | local, UINT32_MAX);
    }
  }
  return end;
}

void start_cluster(const Grid& grid, int rank, int first, const Knowledge& known) {
  Cluster& cluster = world->clusters.emplace_back();
  for (int r = 0; r < grid.shape.cluster; ++r) {
    Block& block = world->blocks.emplace_back();
    block.slot = static_cast<uint32_t>(world->blocks.size() - 1);
    block.rank = rank;
    block.grid = &grid;
    block.index = first + r;
    block.cluster = &cluster;
    block.cluster_rank = r;
    block.smem.assign(grid.shape.smem_bytes, 0xFF);
    block.shadow.emplace(grid.shape.smem_bytes);
    block.live = grid.shape.block;
    block.before = known.seen;
    block.warps.resize(grid.shape.block / 32);
    block.warpgroups.resize((grid.shape.block + 127) / 128);
    cluster.blocks.push_back(&block);
    for (size_t w = 0; w < block.warpgroups.size(); ++w)
      block.new_agent("tensor core of warpgroup " + std::to_string(w),
                      "wgmma_wait by all warps of that warpgroup, then a barrier");
    // The compiler gives a thread as many registers as fit, in units of 8.
    const int registers = std::min(255, kRegistersPerSm / grid.shape.block) / 8 * 8;
    for (int t = 0; t < grid.shape.block; ++t) add_fiber(block, t, registers, known);
    if (!world->previous_kernels.contains(rank))
      world->previous_kernels[rank] = block.new_agent("the previous kernel", "griddep_wait");
  }
}

void drop_finished() {
  std::erase_if(world->live, [](Fiber* f) { return f->is_done; });
  for (Block& block : world->blocks) {
    if (!block.is_done() || block.fibers.empty()) continue;
    for (auto& fiber : block.fibers) world->free_stacks.push_back(std::move(fiber->stack));
    block.fibers.clear();
    block.smem.clear();
    block.shadow.reset();
  }
}

std::string describe_deadlock(int not_started) {
  std::map<std::string, std::vector<const Fiber*>> waiting;
  for (const Fiber* f : world->live) {
    const std::string what = f->waiting ? f->waiting->what() : "a loop that finds the same again and again";
    if (!f->is_done) waiting[name_of(*f->block) + ", " + what + "\n      at " + place(f->where)].push_back(f);
  }
  std::string text = "every thread waits, and no copy is under way:";
  for (const auto& [what, fibers] : waiting) {
    auto [low, high] = std::minmax_element(fibers.begin(), fibers.end(),
                                           [](auto* a, auto* b) { return a->thread < b->thread; });
    text += "\n    " + std::to_string(fibers.size()) + " threads (" + std::to_string((*low)->thread) + ".." +
            std::to_string((*high)->thread) + ") of " + what;
  }
  if (not_started > 0) text += "\n    " + std::to_string(not_started) + " blocks wait for one to end";
  return text;
}

void land(size_t i) {
  ++world->effects;
  const PendingCopy copy = std::move(world->pending[i]);
  world->pending.erase(world->pending.begin() + static_cast<std::ptrdiff_t>(i));
  copy.land();
}

void land_copies_of(const Grid& grid) {
  for (size_t i = 0; i < world->pending.size();) {
    if (world->pending[i].grid == &grid) {
      land(i);
    } else {
      ++i;
    }
  }
}

// The first grid of a stream stands for its device.
int rank_of(const std::vector<Grid>& grids, size_t g) {
  while (grids[g].after >= 0) g = static_cast<size_t>(grids[g].after);
  return static_cast<int>(g);
}

void resume(Fiber& fiber) {
  world->current = &fiber;
  switch_stack(&world->scheduler_stack, fiber.stack->pointer);
  world->current = nullptr;
}

// One pass over all threads. Returns whether any of them got further: a thread that looks for something in a
// loop of its own has not, unless somebody has changed anything.
bool run_all_once() {
  const uint64_t effects = world->effects;
  bool has_polled = false;
  std::vector<Fiber*> order = world->live;
  if (world->options.schedule == Schedule::kLazy) std::reverse(order.begin(), order.end());
  if (world->options.schedule == Schedule::kRandom) std::shuffle(order.begin(), order.end(), world->random);
  bool has_run = false;
  for (Fiber* fiber : order) {
    if (fiber->is_done || (fiber->waiting != nullptr && !fiber->waiting->is_over())) continue;
    has_run = true;
    resume(*fiber);
    has_polled |= fiber->is_polling;
    if (world->is_aborted) break;
  }
  if (has_polled && effects == world->effects) {
    ++world->passes_without_effect;
    return false;
  }
  world->passes_without_effect = 0;
  return has_run;
}

void run_to_the_end(const std::vector<Grid>& grids) {
  std::vector<int> next(grids.size(), 0);
  std::vector<Knowledge> known(grids.size());
  for (;;) {
    drop_finished();
    int not_started = 0;
    for (size_t g = 0; g < grids.size(); ++g) {
      const Grid& grid = grids[g];
      while (next[g] < grid.shape.grid) {
        int live = 0;
        for (const Block& block : world->blocks) live += !block.is_done() && block.rank == rank_of(grids, g);
        if (live > 0 && live + grid.shape.cluster > world->options.max_live_blocks) break;
        if (grid.after >= 0 && next[g] == 0) {
          const auto before = static_cast<size_t>(grid.after);
          if (live > 0 || next[before] < grids[before].shape.grid) break;
          land_copies_of(grids[before]);
          known[g] = end_of(grids[before]);
        }
        start_cluster(grid, rank_of(grids, g), next[g], known[g]);
        next[g] += grid.shape.cluster;
      }
      not_started += grid.shape.grid - next[g];
    }
    if (world->live.empty() && not_started == 0 && world->pending.empty()) return;
    const bool has_run = run_all_once();
    if (world->is_aborted) return;
    const bool is_random = world->options.schedule == Schedule::kRandom;
    if (!world->pending.empty() && (!has_run || (is_random && world->random() % 4 == 0))) {
      land(is_random ? world->random() % world->pending.size() : 0);
      if (world->is_aborted) return;
    } else if (!has_run && !world->live.empty() && !let_time_pass() &&
               (world->passes_without_effect == 0 || world->passes_without_effect > kPatience)) {
      world->report.kind = "deadlock";
      world->report.text = "deadlock: " + describe_deadlock(not_started);
      return;
    }
  }
}

std::string shape_fault(const cuda::LaunchShape& shape) {
  if (shape.block < 32 || shape.block > kMaxThreads || shape.block % 32)
    return "a block has 32..1024 threads, a multiple of 32";
  if (shape.smem_bytes > cuda::kMaxSmemBytes) return "a block has at most 227 KiB of shared memory";
  if (shape.cluster < 1 || shape.cluster > kMaxCluster) return "a cluster has 1..8 blocks";
  if (shape.grid < 1 || shape.grid % shape.cluster)
    return "the grid is not a positive multiple of the cluster";
  return "";
}

}  // namespace

void wait_until(const Waiting& waiting, Where where) {
  Fiber& me = current();
  me.where = where;
  me.waiting = &waiting;
  while (!waiting.is_over()) leave_fiber();
  me.waiting = nullptr;
}

void note_look(const void* at, Where where) {
  Fiber& me = current();
  for (const Look& look : me.looks) {
    if (look.at != at || look.where.line() != where.line()) continue;
    if (++me.repeated_looks < kLooksInARow) return;
    me.where = where;
    me.is_polling = true;
    leave_fiber();
    me.is_polling = false;
    return;
  }
  me.repeated_looks = 0;
  me.looks[me.next_look++ % me.looks.size()] = {at, where};
}

void start_copy(PendingCopy copy) {
  ++world->report.copies;
  copy.grid = current().block->grid;
  if (world->options.schedule == Schedule::kEager) {
    copy.land();
  } else {
    world->pending.push_back(std::move(copy));
  }
}

void land_stores(Fiber& fiber, uint32_t groups) {
  for (size_t i = 0; i < world->pending.size();) {
    const PendingCopy& copy = world->pending[i];
    if (copy.stores_of == &fiber && copy.group < groups) {
      land(i);
    } else {
      ++i;
    }
  }
}

void set_fault(const char* kind, const std::string& text) {
  if (world->is_aborted) return;
  world->report.kind = kind;
  world->report.text = std::string(kind) + ": " + text;
  world->is_aborted = true;
}

void fail(const char* kind, const std::string& what, Where where) {
  const Fiber& me = current();
  set_fault(kind, what + "\n    by thread " + std::to_string(me.thread) + " of " + name_of(*me.block) +
                      " at " + place(where));
  // The stack is abandoned: nothing on it may run once a rule is broken.
  for (;;) leave_fiber();
}

Report run(const std::vector<Grid>& grids, const Options& options) {
  World w;
  w.options = options;
  w.random.seed(options.seed);
  for (const Grid& grid : grids)
    if (const std::string fault = shape_fault(grid.shape); !fault.empty()) {
      w.report.kind = "launch";
      w.report.text = "launch: " + fault;
      return w.report;
    }
  world = &w;
  forget_global_accesses();
  run_to_the_end(grids);
  forget_global_accesses();
  world = nullptr;
  return w.report;
}

}  // namespace moela::emu
