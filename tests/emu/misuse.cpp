// Small kernels that break one rule of one instruction each:
//   misuse <name> <schedule>
// Prints the report, or "nothing".
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/hopper/hopper.h"
#include "cuda/hopper/launch.h"
#include "schedule.h"

namespace {

using namespace moela;
using namespace moela::cuda::sm90;

struct Misuse {
  cuda::LaunchShape shape;
  std::function<void()> kernel;
};

constexpr uint32_t kTile = 1024, kBarrier = 0;

uint32_t* memory() {
  static auto* words = static_cast<uint32_t*>(emu::allocate(4096));
  return words;
}

const emu::TensorMap& map() {
  static const emu::TensorMap made = [] {
    emu::TensorMap m;
    emu::fill(memory(), 0, 4096);
    encode_tensor_map(&m, {.base = memory(),
                           .type = cuda::ElementType::kUint8,
                           .rank = 2,
                           .dims = {64, 64},
                           .stride_bytes = {64},
                           .box = {64, 8},
                           .swizzle = cuda::Swizzle::kNone});
    return m;
  }();
  return made;
}

SmemAddr barrier() { return smem_base() + kBarrier; }

// One initialised barrier of the given count, seen by all.
void init(uint32_t count) {
  if (tid() == 0) {
    mbarrier_init(barrier(), count);
    fence_mbarrier_init();
  }
  cluster_sync();
}

// Waits for 512 bytes in barrier 0 that `issue` sends to kTile.
void receive(const std::function<void()>& issue) {
  init(1);
  if (tid() == 0) {
    mbarrier_arrive_expect_tx(barrier(), 512);
    issue();
  }
  mbarrier_wait(barrier(), 0);
}

uint64_t tile_descriptor() { return make_descriptor(smem_base() + kTile, 0, 1024, OperandLayout::k128B); }

SmemAddr tile() { return smem_base() + kTile; }

// The map in shared memory, edited by one thread.
void edit_map(const std::function<void()>& edit) {
  if (lane() < 8)
    sts(tile() + static_cast<uint32_t>(lane()) * 16, reinterpret_cast<const Vec4*>(&map())[lane()]);
  sync_warp();
  if (lane() == 0) edit();
  sync_warp();
}

// Fills 24 KiB for wgmma.
void fill_operands() {
  for (uint32_t i = static_cast<uint32_t>(tid()) * 16; i < 24576; i += 128 * 16)
    sts(smem_base() + kTile + i, Vec4{0, 0, 0, 0});
  fence_proxy_async_shared();
  sync_block();
}

enum class Fault {
  kChangedInFlight,
  kChangedToTheSame,
  kReadInFlight,
  kEndsInFlight,
  kSetAfterFence,
  kNotSet
};

// A product with A in registers, two groups of which the first has retired.
void multiply_fragment(Fault fault) {
  fill_operands();
  Acc<8> acc;
  {
    AFragment retired, a;
    for (int i = 0; i < 4; ++i) {
      retired.set(i, 0);
      if (fault != Fault::kNotSet || i < 3) a.set(i, 0);
    }
    wgmma_fence(acc, retired, a);
    wgmma_e4m3_rs(acc, retired, tile_descriptor(), false);
    wgmma_commit();
    if (fault == Fault::kSetAfterFence) a.set(0, 1);
    wgmma_e4m3_rs(acc, a, tile_descriptor(), true);
    wgmma_commit();
    wgmma_wait<1>(retired);
    retired.set(0, retired.get(0) + 1);
    if (fault == Fault::kChangedInFlight) a.set(0, 1);
    if (fault == Fault::kChangedToTheSame) a.set(0, 0);
    if (fault == Fault::kReadInFlight) a.get(0);
    if (fault != Fault::kEndsInFlight) wgmma_wait<0>(acc);
  }
  wgmma_wait<0>(acc);
}

const cuda::LaunchShape kWarp = {.grid = 1, .block = 32, .smem_bytes = 8192},
                        kPair = {.grid = 2, .block = 32, .cluster = 2, .smem_bytes = 8192},
                        kWarpgroup = {.grid = 1, .block = 128, .smem_bytes = 32768};

const std::map<std::string, Misuse> kMisuses = {
    {"shared load not aligned", {kWarp, [] { lds<uint32_t>(smem_base() + 2); }}},
    {"shared load before the window", {kWarp, [] { lds<uint32_t>(0); }}},
    {"global load not aligned",
     {kWarp, [] { ldg(reinterpret_cast<uint32_t*>(reinterpret_cast<uint8_t*>(memory()) + 1)); }}},
    {"matrix row not aligned",
     {kWarp,
      [] {
        uint32_t r[4] = {};
        stmatrix<4>(smem_base() + 8, r);
      }}},
    {"copy of 8 bytes",
     {kWarp, [] { receive([] { bulk_load(smem_base() + kTile, memory(), 8, barrier()); }); }}},
    {"tile not at a multiple of 128",
     {kWarp, [] { receive([] { tma_load_2d(smem_base() + kTile + 64, &map(), 0, 0, barrier()); }); }}},
    {"map of another rank",
     {kWarp, [] { receive([] { tma_load_3d(smem_base() + kTile, &map(), 0, 0, 0, barrier()); }); }}},
    {"copy onto a barrier",
     {kWarp, [] { receive([] { tma_load_2d(smem_base(), &map(), 0, 0, barrier()); }); }}},
    {"multicast outside the cluster",
     {kPair,
      [] { receive([] { tma_load_multicast_2d(smem_base() + kTile, &map(), 0, 0, barrier(), 4); }); }}},
    {"arrival at no barrier", {kWarp, [] { mbarrier_arrive(barrier()); }}},
    {"barrier not aligned", {kWarp, [] { mbarrier_init(smem_base() + 4, 1); }}},
    {"barrier of nobody", {kWarp, [] { mbarrier_init(barrier(), 0); }}},
    {"barrier initialised twice",
     {kWarp,
      [] {
        if (tid() == 0) mbarrier_init(barrier(), 1);
        if (tid() == 0) mbarrier_init(barrier(), 1);
      }}},
    {"too many bytes expected",
     {kWarp,
      [] {
        init(1);
        if (tid() == 0) mbarrier_arrive_expect_tx(barrier(), 1 << 20);
      }}},
    {"wait for a barrier of another block",
     {kPair,
      [] {
        init(1);
        mbarrier_wait(mapa(barrier(), 1 - cluster_rank()), 0);
      }}},
    {"arrival at a barrier that was not fenced",
     {kPair,
      [] {
        if (tid() == 0) mbarrier_init(barrier(), 1);
        cluster_sync();
        if (tid() == 0) mbarrier_arrive_remote(mapa(barrier(), 1 - cluster_rank()));
        cluster_sync();
      }}},
    {"copy to one block and signal to another",
     {kPair,
      [] {
        init(1);
        st_async(mapa(smem_base() + kTile, 1), 0, mapa(barrier(), 0));
      }}},
    {"cluster wait without arrival", {kWarp, [] { cluster_wait(); }}},
    {"two cluster arrivals",
     {kPair,
      [] {
        cluster_arrive();
        cluster_arrive();
      }}},
    {"lanes in different collectives", {kWarp, [] { lane() < 16 ? (void)redux_max(1) : sync_warp(); }}},
    {"warp number of some lanes",
     {kWarp,
      [] {
        if (lane() == 0 && warp() == 0) sts(smem_base(), 0u);
        sync_warp();
      }}},
    {"a lane missing from a collective",
     {kWarp,
      [] {
        if (lane() > 0) sync_warp();
      }}},
    {"a thread missing from a block barrier",
     {kWarpgroup,
      [] {
        if (tid() < 96) sync_block();
      }}},
    {"named barrier of 48 threads", {kWarpgroup, [] { bar_sync<1>(48); }}},
    {"registers increased to fewer", {kWarpgroup, [] { setmaxnreg_inc<24>(); }}},
    {"wgmma by half a warpgroup",
     {{.grid = 1, .block = 64, .smem_bytes = 32768},
      [] {
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, tile_descriptor(), tile_descriptor(), false);
      }}},
    {"descriptor with a base offset",
     {kWarpgroup,
      [] {
        fill_operands();
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, tile_descriptor() | 1ull << 49, tile_descriptor(), false);
        wgmma_commit();
        wgmma_wait<0>(acc);
      }}},
    {"operand not fenced for the tensor core",
     {kWarpgroup,
      [] {
        fill_operands();
        sts(smem_base() + kTile + static_cast<uint32_t>(tid()) * 16, Vec4{0, 0, 0, 0});
        sync_block();
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, tile_descriptor(), tile_descriptor(), false);
        wgmma_commit();
        wgmma_wait<0>(acc);
      }}},
    {"accumulator ends in flight",
     {kWarpgroup,
      [] {
        fill_operands();
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, tile_descriptor(), tile_descriptor(), false);
        wgmma_commit();
      }}},
    {"accumulator read without a value",
     {kWarpgroup,
      [] {
        Acc<8> acc;
        acc.get(0);
      }}},
    {"fragment changed in flight", {kWarpgroup, [] { multiply_fragment(Fault::kChangedInFlight); }}},
    {"fragment changed to what it was", {kWarpgroup, [] { multiply_fragment(Fault::kChangedToTheSame); }}},
    {"fragment read in flight", {kWarpgroup, [] { multiply_fragment(Fault::kReadInFlight); }}},
    {"fragment ends in flight", {kWarpgroup, [] { multiply_fragment(Fault::kEndsInFlight); }}},
    {"fragment set after the fence", {kWarpgroup, [] { multiply_fragment(Fault::kSetAfterFence); }}},
    {"fragment without a value", {kWarpgroup, [] { multiply_fragment(Fault::kNotSet); }}},
    {"products of two shapes in one accumulator",
     {kWarpgroup,
      [] {
        fill_operands();
        Acc<8> acc;
        wgmma_fence(acc);
        wgmma_e4m3(acc, tile_descriptor(), tile_descriptor(), false);
        wgmma_bf16<false, false>(acc, tile_descriptor(), tile_descriptor(), true);
        wgmma_commit();
        wgmma_wait<0>(acc);
      }}},
    {"map edited beyond its rank", {kWarp, [] { edit_map([] { tensor_map_set_size<3>(tile(), 8); }); }}},
    {"map edited to no rows", {kWarp, [] { edit_map([] { tensor_map_set_size<1>(tile(), 0); }); }}},
    {"map edited to an odd stride", {kWarp, [] { edit_map([] { tensor_map_set_stride<1>(tile(), 40); }); }}},
    {"map edited to an odd address",
     {kWarp,
      [] { edit_map([] { tensor_map_set_address(tile(), reinterpret_cast<uint8_t*>(memory()) + 8); }); }}},
    {"map edited where none is", {kWarp, [] { tensor_map_set_size<1>(smem_base() + kTile, 8); }}},
    {"map not aligned", {kWarp, [] { edit_map([] { tensor_map_set_size<1>(tile() + 32, 8); }); }}},
    {"map published from 64",
     {kWarp,
      [] { edit_map([] {}), tensor_map_publish(reinterpret_cast<TensorMap*>(memory()), tile() + 64); }}},
    {"map published by half a warp",
     {kWarp,
      [] {
        edit_map([] {});
        if (lane() < 16) tensor_map_publish(reinterpret_cast<TensorMap*>(memory()), tile());
      }}},
    {"store not committed",
     {kWarp,
      [] {
        if (tid() > 0) return;
        for (uint32_t i = 0; i < 64; i += 4) sts(smem_base() + kTile + i, 0u);
        fence_proxy_async_shared();
        bulk_store(memory(), smem_base() + kTile, 64);
      }}},
    {"written after the fence",
     {kWarp,
      [] {
        if (tid() > 0) return;
        for (uint32_t i = 0; i < 64; i += 4) sts(smem_base() + kTile + i, 0u);
        fence_proxy_async_shared();
        sts(smem_base() + kTile, 1u);
        bulk_store(memory(), smem_base() + kTile, 64);
        bulk_commit();
        bulk_wait<0>();
      }}},
    {"block of 48 threads", {{.grid = 1, .block = 48}, [] {}}},
    {"grid that is no multiple of the cluster", {{.grid = 3, .block = 32, .cluster = 2}, [] {}}},
    {"cluster of 16", {{.grid = 16, .block = 32, .cluster = 16}, [] {}}},
    {"too much shared memory", {{.grid = 1, .block = 32, .smem_bytes = 228 * 1024}, [] {}}},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, misuse] : kMisuses) std::printf("%s\n", name.c_str());
    return 0;
  }
  const Misuse& misuse = kMisuses.at(argv[1]);
  map();
  const emu::Report report = emu::run({{misuse.shape, misuse.kernel}}, schedule_of(argv[2]));
  std::printf("%s\n", report.ok() ? "nothing" : report.text.c_str());
  return 0;
}
