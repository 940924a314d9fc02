// What a host program calls: memory, tensor maps, and running kernels under a schedule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/hopper/shape.h"

namespace moela::emu {

// When asynchronous work (TMA, wgmma, bulk stores) happens, and which thread goes first.
enum class Schedule {
  kEager,   // at once; threads in order
  kLazy,    // when nothing else can run; threads in reverse order
  kRandom,  // anything a seed says
};

struct Options {
  Schedule schedule = Schedule::kLazy;
  uint64_t seed = 1;
  bool races = true;           // false: only values, bounds and deadlocks
  int max_live_blocks = 132;   // of one grid, resident at once: an H100 has 132 SMs
  int fp8_fraction_bits = 13;  // Hopper's fp8 accumulator, as reported; 23: a float32 accumulator
};

struct Report {
  std::string kind;  // empty: nothing to report
  std::string text;
  uint64_t switches = 0, wgmmas = 0, copies = 0;
  bool ok() const { return kind.empty(); }
};

// A kernel on one device. Several grids run at once: one per rank, or a stream of them per rank.
struct Grid {
  cuda::LaunchShape shape;
  std::function<void()> body;
  int after = -1;  // the grid before it in its stream, on the same device; -1: the first of its rank
};

Report run(const std::vector<Grid>& grids, const Options& options);

// Device memory: registered, poisoned with 0xFF, uninitialised until written by copy_to, fill or a kernel.
void* allocate(size_t bytes);
void release(void* memory);
void copy_to(void* device, const void* host, size_t bytes);
void fill(void* device, int byte, size_t bytes);
void copy_from(void* host, const void* device, size_t bytes);
// Memory that no earlier kernel of the stream writes: it may be read before griddepcontrol.wait.
void mark_constant(void* memory);

// Mutants of the emulator itself, for tests/emu/test_mutants.py; 0 is the right one.
#ifdef EMU_MUTATE
extern int mutant;
#define EMU_MUTANT(n, right, wrong) (::moela::emu::mutant == (n) ? (wrong) : (right))
#else
#define EMU_MUTANT(n, right, wrong) (right)
#endif

}  // namespace moela::emu
