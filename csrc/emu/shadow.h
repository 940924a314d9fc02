// Who wrote and who read each byte of a memory, and whether a new access is ordered after them.
//
// One line covers 16 bytes. While every access covers whole lines (TMA, wgmma, ldmatrix) a line is one cell;
// the first partial access splits it into bytes, and the next whole write merges it again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "emu/clock.h"

namespace moela::emu {

// kAtomic: flags and counters; kReduce: cp.reduce.async.bulk. Both are atomic among themselves only.
enum class Proxy : uint8_t { kNone, kGeneric, kAsync, kAtomic, kReduce };

struct Access {
  Agent agent = 0;
  uint32_t tick = 0;
  uint16_t site = 0;  // source line, see sites.h
  Proxy proxy = Proxy::kNone;
  bool is_write = false;
};

// An access and what its agent knows when it makes it.
struct Actor {
  Access access;
  const Clock* seen;
  const Clock* fenced = nullptr;  // set for other proxies: generic writes that a proxy fence has published
  const char* fence = "fence.proxy.async";  // which fence that is
  bool is_read_only_path = false;           // ld.global.nc
  const Clock* before = nullptr;            // set for threads: what was over when their grid began
  uint32_t own_fenced = 0;                  // the tick up to which the issuing thread's own writes are fenced
  Agent self = 0;                           // the issuing thread: its own accesses precede this one
};

struct Conflict {
  enum Kind { kNone, kUninitialised, kRead, kWrite, kProxy, kReadOnly } kind = kNone;
  size_t offset = 0;
  Access other;
  explicit operator bool() const { return kind != kNone; }
};

class Shadow {
 public:
  explicit Shadow(size_t bytes) : init_(bytes / kLine + 1), pages_(bytes / kPage + 1) {}

  Conflict read(size_t offset, size_t bytes, const Actor& actor);
  Conflict write(size_t offset, size_t bytes, const Actor& actor);
  // Whether all bytes have a value.
  bool is_initialised(size_t offset, size_t bytes) const;
  // Marks bytes as having a value (written by the host).
  void initialise(size_t offset, size_t bytes);
  // Drops every access, keeps what is initialised: a kernel boundary orders everything.
  void forget();
  // Calls f(offset, access, is_write) for every recorded access.
  template <class F>
  void for_each(F f) const;

 private:
  static constexpr size_t kLine = 16, kPage = 1024;

  struct Cell {
    Access write;
    std::vector<Access> others;  // reads since; if the write is atomic, also what came before it
    size_t prune_at = 32;
  };
  struct Line {
    Cell whole;
    std::unique_ptr<std::array<Cell, kLine>> bytes;
  };
  using Page = std::array<Line, kPage / kLine>;

  Line& line(size_t index);
  static void split(Line& line);
  static void record_read(Cell& cell, const Actor& actor);
  static void record_write(Cell& cell, const Actor& actor);
  static void check_earlier_write(const Access& write, const Actor& actor, Conflict& found);
  static void check_read(const Cell& cell, const Actor& actor, Conflict& found);
  static void check_write(const Cell& cell, const Actor& actor, Conflict& found);

  std::vector<uint16_t> init_;  // one bit per byte
  std::vector<std::unique_ptr<Page>> pages_;
};

template <class F>
void Shadow::for_each(F f) const {
  for (size_t p = 0; p < pages_.size(); ++p) {
    if (!pages_[p]) continue;
    for (size_t l = 0; l < pages_[p]->size(); ++l) {
      const Line& line = (*pages_[p])[l];
      for (size_t b = 0; b < (line.bytes ? kLine : 1); ++b) {
        const Cell& cell = line.bytes ? (*line.bytes)[b] : line.whole;
        const size_t offset = p * kPage + l * kLine + b;
        if (cell.write.proxy != Proxy::kNone) f(offset, cell.write, true);
        for (const Access& access : cell.others) f(offset, access, access.is_write);
      }
    }
  }
}

}  // namespace moela::emu
