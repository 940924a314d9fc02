// Vector clocks that stay small however many threads there are.
//
// Threads that have synchronised share one immutable table by pointer, and a table holds rows only for blocks
// that its owner has heard of. 12 000 threads then cost what their distinct histories cost, not 12 000
// squared.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace moela::emu {

// Whoever accesses memory on its own: a thread, the tensor core of a warpgroup, the TMA traffic of one
// mbarrier, the bulk stores of one thread. Upper bits: the block's slot; lower bits: its index in the block.
using Agent = uint32_t;
constexpr int kLocalBits = 12;
inline uint32_t slot_of(Agent agent) { return agent >> kLocalBits; }
inline uint32_t local_of(Agent agent) { return agent & ((1u << kLocalBits) - 1); }

class Clock {
 public:
  uint32_t get(Agent agent) const;
  // Raises one agent's tick.
  void set(Agent agent, uint32_t tick);
  // What either knows. Equal arguments give pointer-equal results, so that threads keep sharing.
  void join(const Clock& other);
  // What both know.
  void meet(const Clock& other);
  bool knows_all_of(const Clock& other) const;
  bool is_same(const Clock& other) const { return table_ == other.table_; }

 private:
  using Row = std::shared_ptr<std::vector<uint32_t>>;  // ticks by index in the block
  struct Entry {
    uint32_t slot;
    Row row;
  };
  using Table = std::vector<Entry>;  // sorted by slot
  using TablePtr = std::shared_ptr<Table>;

  static TablePtr joined(const TablePtr& a, const TablePtr& b);

  TablePtr table_;
};

}  // namespace moela::emu
