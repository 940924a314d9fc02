// The state of a run: grids of blocks of threads, and what they wait for.
#pragma once

#include <array>
#include <bitset>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "emu/fiber.h"
#include "emu/knowledge.h"
#include "emu/run.h"
#include "emu/runtime.h"
#include "emu/shadow.h"

namespace moela::emu {

// What a thread waits for. It lives on the stack of the fiber that waits.
struct Waiting {
  static constexpr uint64_t kNever = UINT64_MAX;
  virtual ~Waiting() = default;
  virtual bool is_over() const = 0;
  virtual std::string what() const = 0;
  virtual uint64_t ends_at() const { return kNever; }  // the time, if nothing else ends it
};

struct Block;

struct InFlight {  // an accumulator that the tensor core owns
  AccumulatorState* state;
  float* registers;
  std::shared_ptr<Operation> operation;
};

struct Look {
  const void* at = nullptr;
  Where where;
};

struct Fiber {
  Block* block = nullptr;
  int thread = 0;
  bool is_done = false;
  std::unique_ptr<Stack> stack;
  const Waiting* waiting = nullptr;
  Where where;
  Self self;
  uint32_t warp_reads = 0;  // how often it has called warp()

  uint32_t wgmma_fences = 1, wgmma_group = 0;
  uint32_t wgmma_retired = 0;  // groups that this thread has waited for
  size_t wgmma_count = 0;
  std::vector<InFlight> in_flight;

  // Bulk stores read shared memory as one agent and write global memory as another: wait_group.read waits for
  // the first only.
  Agent store_reads = 0, store_writes = 0;
  uint32_t store_group = 0;
  bool has_open_stores = false;

  uint32_t cluster_arrivals = 0, has_cluster_waited_for = 0;
  int registers = 0;
  uint32_t register_changes = 0;
  // fence.acq_rel, by scope: what it published for later relaxed stores, and what relaxed loads have found.
  std::array<Knowledge, 2> fenced_for_flags, found_in_flags;
  std::map<const void*, Clock> acquired_maps;  // what the last fence.proxy.tensormap acquire has published

  std::array<Look, 4> looks;  // the last places that the thread has loaded from
  uint32_t next_look = 0, repeated_looks = 0;
  bool is_polling = false;
};

struct Waited {  // a wait for the completion of a phase
  Agent agent;
  uint32_t tick, phase;
  Where where;
};

struct Mbarrier {
  Block* block;
  uint32_t offset;
  uint32_t count, pending;
  int64_t bytes = 0;  // expected minus arrived
  uint32_t phase = 0;
  Gather arrived;              // of threads of any block
  Clock used;                  // who has arrived or waited, and when
  Gather arrived_local;        // of threads of the own block: what a wait at the scope of the block acquires
  Knowledge done, done_local;  // of the last completed phase
  Agent traffic;               // copies that complete here
  Agent initialiser;
  uint32_t init_tick;
  uint32_t fence_tick = 0;       // of the initialiser: when it executed fence.mbarrier_init
  uint32_t copies_in_phase = 0;  // issued for this phase, not landed
  std::vector<Waited> waits;
  int waiting = 0;                            // threads that are in a wait
  std::map<Agent, uint32_t> remote_arrivals;  // of threads of other blocks
};

struct NamedBarrier {
  uint32_t generation = 0;
  int arrived = 0, needed = 0;
  std::bitset<1024> has_arrived;  // by thread
  Agent completion = 0;           // its ticks are the generations
  Gather gather;
  Knowledge released;
};

struct Warp {
  uint32_t generation = 0;
  int arrived = 0;
  uint32_t warp_reads = 0;  // of the lanes that have arrived
  Collective kind{};
  WarpWords words[2];  // by the parity of the generation: a slow lane still reads the last one
  Gather gather;
  Knowledge released;
};

struct Warpgroup {
  size_t first = 0;  // index of operations.front() among all operations
  std::deque<std::shared_ptr<Operation>> operations;
  std::vector<int> committed;  // threads that have committed group i
};

struct Cluster {
  std::vector<Block*> blocks;
  uint32_t generation = 0;
  int arrived = 0;
  Gather gather;
  Knowledge released;
};

struct Block {
  uint32_t slot;
  int rank;  // which device
  const Grid* grid;
  int index;  // in the grid
  Cluster* cluster;
  int cluster_rank;
  std::vector<uint8_t> smem;
  std::optional<Shadow> shadow;
  std::vector<std::unique_ptr<Fiber>> fibers;
  int live = 0;
  std::map<uint32_t, Mbarrier> mbarriers;  // by offset
  std::array<NamedBarrier, 16> named;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  struct Named {
    std::string name;
    std::string remedy;  // what orders others after it, for reports
  };
  std::vector<Named> agents;  // those that are not threads
  int free_registers = 0;     // per thread
  Clock before;               // what was over when its grid began
  Gather exited;

  bool is_done() const { return live == 0; }
  int threads() const { return grid->shape.block; }
  Agent new_agent(std::string name, std::string remedy);
};

// A copy whose data have not moved yet.
struct PendingCopy {
  std::function<void()> land;
  Fiber* stores_of = nullptr;  // a bulk store of this thread, in group `group`
  uint32_t group = 0;
  const Grid* grid = nullptr;  // whose thread has issued it
};

// A flag that orders threads: what its last release knew.
struct Flag {
  Knowledge known;
};

struct World {
  Options options;
  Report report;
  std::deque<Block> blocks;  // every block of the run; those that have ended keep their names
  std::deque<Cluster> clusters;
  std::vector<Fiber*> live;
  std::deque<PendingCopy> pending;
  std::map<std::pair<const void*, int>, Flag> flags;  // by address and rank; rank -1: system-wide
  std::vector<Where> sites;
  std::vector<std::unique_ptr<Stack>> free_stacks;
  std::mt19937_64 random;
  std::map<int, Agent> previous_kernels;  // by rank: stands for the kernels that a grid overlaps
  uint64_t effects = 0;                   // changes that another thread could see
  uint64_t now = 0;                       // nanoseconds
  uint32_t passes_without_effect = 0;
  void* scheduler_stack = nullptr;
  Fiber* current = nullptr;
  bool is_aborted = false;
};

extern World* world;

inline Fiber& current() { return *world->current; }

// Notes the first fault and stops the run. fail() in runtime.h also leaves the running thread; this is for
// code that the scheduler runs too.
void set_fault(const char* kind, const std::string& text);

// Blocks the running thread.
void wait_until(const Waiting& waiting, Where where);
// Lets others run if the thread loads from the same few places over and over: it is a loop that waits.
void note_look(const void* at, Where where);
void start_copy(PendingCopy copy);
// To the end of the first sleep, if there is one.
bool let_time_pass();
// Lands the bulk stores of a thread up to a group, for a thread that waits for them.
void land_stores(Fiber& fiber, uint32_t groups);
void check_block_exit(Block& block);

// Names for reports.
std::string name_of(Agent agent);
// What would order an access after one of this agent.
std::string remedy_for(Agent agent);
std::string name_of(const Block& block);
std::string smem_name(const Block& block, uint32_t offset);
std::string place(Where where);
uint16_t site_of(Where where);

// Shared memory, wherever in the cluster.
struct SharedRange {
  Block* block;
  uint32_t offset;
  uint8_t* data() const { return &block->smem[offset]; }
};
SharedRange resolve_shared(uint32_t address, uint32_t bytes, const char* what, Where where);
// For instructions that take an address of the own block, not one from mapa().
SharedRange resolve_own_shared(uint32_t address, uint32_t bytes, const char* what, Where where);
Actor thread_actor(Fiber& fiber, Where where);
// For copies: `agent` at `tick` acts with what the running thread knows, on one of the two memories.
enum class AsyncSide { kShared, kGlobal };
Actor async_actor(Agent agent, uint32_t tick, AsyncSide side, Where where);
void access_shared(SharedRange range, uint32_t bytes, bool is_write, const Actor& actor, const char* what,
                   Where where);

// Ends the run with what a shadow found.
[[noreturn]] void fail_with(const Conflict& found, bool is_write, const Actor& actor, const char* what,
                            const std::string& memory, Where where);

// Global memory.
struct GlobalRange {
  struct Allocation* allocation;
  size_t offset;
};
GlobalRange resolve_global(const void* address, size_t bytes, const char* what, Where where);
bool is_allocated(const void* address, size_t bytes);
void access_global(GlobalRange range, size_t bytes, bool is_write, const Actor& actor, const char* what,
                   Where where);
// For what reads memory and writes it at once.
void check_has_value(GlobalRange range, size_t bytes, const Actor& actor, const char* what, Where where);
void forget_global_accesses();

// The tensor map that a copy is given: what it says, and the copy's reading of it.
cuda::TensorSpec spec_of(const TensorMap* map, int rank, Where where);
void read_tensor_map(const TensorMap* map, Agent agent, uint32_t tick, Where where);

// mbarriers, for copies.
Mbarrier& find_mbarrier(SharedRange at, const char* what, Where where);
void complete_bytes(Mbarrier& barrier, int64_t bytes);
// Others may use the barrier, and the async proxy: its initialiser has fenced, and the thread knows of it.
void check_published(const Mbarrier& barrier, const char* what, Where where);

}  // namespace moela::emu
