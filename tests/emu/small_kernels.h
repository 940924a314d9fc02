// Small kernels whose threads are not ordered as they must be, and right ones, whose names start with "right:
// ": a program has a table of them and runs one,
//   <program> <name> <schedule>
// and prints the report, or "nothing". Without arguments it lists them.
#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "cuda/hopper/hopper.h"
#include "cuda/hopper/launch.h"
#include "schedule.h"

using namespace moela;
using namespace moela::cuda::sm90;

struct Kernel {
  cuda::LaunchShape shape;
  std::function<void()> body;
};

// Global memory of every kernel: the first words are zero, the second half has no value.
constexpr int kWords = 1024;
inline uint32_t* memory() {
  static auto* words = static_cast<uint32_t*>(emu::allocate(kWords * 4));
  return words;
}
inline uint32_t* flag() { return memory() + 400; }
inline uint32_t* no_value() { return memory() + kWords / 2; }

constexpr uint32_t kTile = 1024;
inline SmemAddr barrier() { return smem_base(); }
inline SmemAddr tile() { return smem_base() + kTile; }
inline SmemAddr slot() { return tile() + static_cast<uint32_t>(tid()) * 4; }

inline void init(uint32_t count) {
  if (tid() == 0) {
    mbarrier_init(barrier(), count);
    fence_mbarrier_init();
  }
  cluster_sync();
}

const cuda::LaunchShape kWarp = {.grid = 1, .block = 32, .smem_bytes = 8192},
                        kTwoWarps = {.grid = 1, .block = 64, .smem_bytes = 8192},
                        kWarpgroup = {.grid = 1, .block = 128, .smem_bytes = 32768},
                        kTwoWarpgroups = {.grid = 1, .block = 256, .smem_bytes = 32768},
                        kPair = {.grid = 2, .block = 32, .cluster = 2, .smem_bytes = 8192},
                        kTwoBlocks = {.grid = 2, .block = 32, .smem_bytes = 8192},
                        kOverlapping = {
                            .grid = 1, .block = 64, .smem_bytes = 8192, .overlaps_previous = true};

using Kernels = std::map<std::string, Kernel>;

inline int run_one(const Kernels& kernels, int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, kernel] : kernels) std::printf("%s\n", name.c_str());
    return 0;
  }
  const Kernel& kernel = kernels.at(argv[1]);
  emu::fill(memory(), 0, kWords * 2);
  const emu::Report report = emu::run({{kernel.shape, kernel.body}}, schedule_of(argv[2]));
  std::printf("%s\n", report.ok() ? "nothing" : report.text.c_str());
  return 0;
}
