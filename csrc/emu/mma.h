// One wgmma of a warpgroup, from its issue to its result.
#pragma once

#include "emu/layout.h"
#include "emu/world.h"

namespace moela::emu {

constexpr int kWarpgroup = 128, kM = 64, kChunkBytes = 16;

struct Operation {
  MmaOperands operands;
  Block* block;
  uint32_t group;
  int issued = 0;
  bool is_computed = false;
  bool starts_from_registers = false;
  std::vector<float> a_fragment;        // [64, k] where A comes from registers
  std::vector<float> d;                 // [64, n]
  std::shared_ptr<Operation> previous;  // whose result this one adds to
  // Distinct knowledge among the 128 threads, and how many threads have it.
  struct Knower {
    Knowledge known;
    const Self* self;
    uint32_t fenced_tick;
    int count;
  };
  std::vector<Knower> knowers;
};

// The product and sum, once: later calls return at once.
void compute(Operation& op);
// Takes what thread t of the warpgroup holds of A.
void take_a_fragment(Operation& op, int t, const uint32_t* registers);

inline int element_size(MmaType type) { return type == MmaType::kE4m3 ? 1 : 2; }
inline int k_of(MmaType type) { return 32 / element_size(type); }

// Calls f(mn, k, elements along mn, elements along k, address) for each 16-byte chunk of a rows x k operand.
template <class F>
void each_chunk(uint64_t descriptor, int rows, MmaType type, bool is_mn_major, F f) {
  const Descriptor d(descriptor);
  const int size = element_size(type), per_chunk = kChunkBytes / size;
  if (!is_mn_major) {
    for (int mn = 0; mn < rows; ++mn)
      for (int half = 0; half < 2; ++half)
        f(mn, half * per_chunk, 1, per_chunk,
          d.k_major(static_cast<uint32_t>(mn), static_cast<uint32_t>(half * kChunkBytes)));
  } else {
    for (int k = 0; k < k_of(type); ++k)
      for (int mn = 0; mn < rows; mn += per_chunk)
        f(mn, k, per_chunk, 1, d.mn_major(static_cast<uint32_t>(mn * size), static_cast<uint32_t>(k)));
  }
}

}  // namespace moela::emu
