// What the emulated half of hopper.h calls. Every function acts for the thread that runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "emu/tensor_map.h"
#include "emu/where.h"

namespace moela::emu {

// Ends the run with a report.
[[noreturn]] void fail(const char* kind, const std::string& what, Where where);

struct Ids {
  int thread, block, num_blocks, cluster_rank, cluster_size;
};
Ids ids();
int read_warp();  // the number of the thread's warp

// Shared memory. Addresses start at kSmemWindow, so that 0 is never valid; mapa() puts the rank of a block of
// the cluster into the upper bits.
constexpr uint32_t kSmemWindow = 0x400;
constexpr int kRankShift = 24;
enum class Window { kOwn, kCluster };  // of addresses: .shared::cta or .shared::cluster
void load_shared(uint32_t address, void* value, uint32_t bytes, Window window, Where where);
void store_shared(uint32_t address, const void* value, uint32_t bytes, Window window, Where where);
uint32_t map_shared_rank(uint32_t address, int rank, Where where);
void store_async(uint32_t address, const void* value, uint32_t bytes, uint32_t barrier, Where where);
void fence_proxy_async(bool shared, bool global);

// Global memory.
enum class Path { kCoherent, kReadOnly };
enum class Scope { kGpu, kSys };
void fence_acq_rel(Scope scope);
void load_global(const void* from, void* value, uint32_t bytes, Path path, Where where);
void store_global(void* to, const void* value, uint32_t bytes, Where where);
void load_atomic(const void* from, void* value, uint32_t bytes, bool is_acquire, Scope scope, Where where);
void store_atomic(void* to, const void* value, uint32_t bytes, bool is_release, Scope scope, Where where);
uint64_t add_atomic(void* to, uint64_t value, uint32_t bytes, bool is_acquire, bool is_release, Scope scope,
                    Where where);
void wait_flag_at_least(const void* flag, uint64_t value, uint32_t bytes, Scope scope, Where where);

// Time, in nanoseconds. It passes only when nothing else can happen.
uint64_t global_time();
void sleep(uint64_t nanoseconds, Where where);

// mbarrier
void mbarrier_init(uint32_t barrier, uint32_t count, Where where);
void mbarrier_invalidate(uint32_t barrier, Where where);
void mbarrier_arrive(uint32_t barrier, uint32_t arrivals, int64_t expect_bytes, Window window, Where where);
bool mbarrier_test(uint32_t barrier, uint32_t parity, bool is_cluster_wide, Where where);
void mbarrier_wait(uint32_t barrier, uint32_t parity, bool is_cluster_wide, Where where);
void fence_mbarrier_init();

// Copies
struct Coordinates {
  int32_t at[5];
};
void tensor_load(uint32_t smem, const TensorMap* map, int rank, Coordinates at, uint32_t barrier,
                 uint32_t cluster_mask, Where where);
void tensor_store(const TensorMap* map, int rank, Coordinates at, uint32_t smem, Where where);
void tensor_reduce_add(const TensorMap* map, int rank, Coordinates at, uint32_t smem, Where where);
void bulk_load(uint32_t smem, const void* global, uint32_t bytes, uint32_t barrier, uint32_t cluster_mask,
               Where where);
void bulk_store(void* global, uint32_t smem, uint32_t bytes, Where where);
void bulk_reduce_add(void* global, uint32_t smem, uint32_t bytes, cuda::ElementType type, Where where);
void bulk_copy_cluster(uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier, Where where);
// Cache policies are opaque; these two come from createpolicy.
constexpr uint64_t kEvictFirst = 0x6D6F656C61'01, kEvictLast = 0x6D6F656C61'02;
void check_cache_policy(uint64_t policy, Where where);
void bulk_commit();
void bulk_wait(int max_pending, bool is_read, Where where);

// Tensor maps that kernels edit
enum class MapField { kAddress, kSize, kStride };
void edit_shared_tensor_map(uint32_t map, MapField field, int dim, uint64_t value, Where where);
void edit_global_tensor_map(TensorMap* map, MapField field, int dim, uint64_t value, Where where);
void publish_tensor_map(TensorMap* to, uint32_t from, Where where);
void fence_tensor_map_release();
void fence_tensor_map_acquire(const TensorMap* map, Where where);

// Barriers among threads
void barrier_sync(int id, int threads, Where where);  // threads 0: the whole block
void barrier_arrive(int id, int threads, Where where);
void cluster_arrive(bool is_release, Where where);
void cluster_wait(Where where);

// Warp collectives: every lane gives `words` words and gets those of all 32.
enum class Collective {
  kSync,
  kElect,
  kShuffle,
  kReduce,
  kVote,
  kStoreMatrix,
  kLoadMatrix,
  kRegisters,
  kPublishMap
};
constexpr int kMaxWords = 5;
struct WarpWords {
  uint32_t of[32][kMaxWords];
};
WarpWords warp_exchange(Collective kind, const uint32_t* words, int count, Where where);

void set_registers(int count, bool is_increase, Where where);
void grid_dependency_wait();

// wgmma
struct Operation;
enum class MmaType { kE4m3, kBFloat16, kFloat16 };
struct AccumulatorState {
  AccumulatorState();
  bool is_in_flight = false, is_initialised = false;
  uint32_t touched_at;     // how many wgmma.fence the thread had executed at the last register access
  uint32_t issued_at = 0;  // and at the last wgmma
  std::shared_ptr<Operation> last;
};
struct FragmentState {
  FragmentState();
  uint32_t words_set = 0;   // a bit per register
  uint32_t touched_at;      // as for an accumulator
  uint32_t read_until = 0;  // how many wgmma groups must retire before the registers may be touched
};
struct MmaOperands {
  MmaType type;
  int n;
  bool transpose_a, transpose_b;
  const uint32_t* a_registers;  // or null: a_descriptor
  FragmentState* a_state;       // of a_registers
  uint64_t a_descriptor, b_descriptor;
  bool accumulate;
};
void wgmma_fence();
void wgmma(AccumulatorState& state, float* registers, const MmaOperands& operands, Where where);
void wgmma_commit(Where where);
void wgmma_wait(int max_pending, Where where);
void touch_accumulator(AccumulatorState& state, bool is_write, Where where);
void drop_accumulator(const AccumulatorState& state);
void touch_fragment(FragmentState& state, int word, bool is_write, Where where);
void drop_fragment(const FragmentState& state);

}  // namespace moela::emu
