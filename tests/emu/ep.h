// Virtual ranks in one process: symmetric memory for each, and a stream of kernels on each.
#pragma once

#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "cuda/block/ep_memory.h"
#include "files.h"
#include "plan/ep_rows_sm90.h"
#include "schedule.h"

// Whitespace-separated words of a file, in the order in which they are asked for.
class Words {
 public:
  explicit Words(const std::string& path) : file_(path) {}
  int64_t number() { return std::stoll(text()); }
  std::string text() {
    std::string word;
    file_ >> word;
    return word;
  }

 private:
  std::ifstream file_;
};

inline int64_t file_bytes(const std::string& path) {
  return static_cast<int64_t>(std::ifstream(path, std::ios::binary | std::ios::ate).tellg());
}

template <class T>
T* loaded(const std::string& path) {
  return static_cast<T*>(load(path));
}

class Ranks {
 public:
  // shape: without bases and rank.
  Ranks(const moela::cuda::EpMemory& shape, uint64_t deadline) : deadline_(deadline) {
    const auto R = static_cast<size_t>(shape.num_ranks);
    std::vector<void*> bases(R);
    for (void*& base : bases) {
      base = moela::emu::allocate(static_cast<size_t>(shape.bytes()));
      moela::emu::fill(base, 0,
                       static_cast<size_t>(shape.rows_at(0, 0)));  // rows: nothing until they are sent
    }
    for (size_t r = 0; r < R; ++r) {
      moela::cuda::EpMemory memory = shape;
      auto* table = static_cast<uint8_t**>(moela::emu::allocate(R * sizeof(void*)));
      moela::emu::copy_to(table, bases.data(), R * sizeof(void*));
      memory.bases = table;
      memory.rank = static_cast<int>(r);
      memories_.push_back(memory);
      epochs_.push_back(static_cast<uint64_t*>(zeros(16)));
      done_.push_back(static_cast<uint32_t*>(zeros(8)));
      status_.push_back(static_cast<uint64_t*>(zeros(8)));
      last_.push_back(-1);
    }
  }

  moela::cuda::EpExchange exchange(int rank, uint32_t kind, uint32_t row_bytes) const {
    const auto r = static_cast<size_t>(rank);
    return {.memory = memories_[r],
            .epochs = epochs_[r],
            .kind = kind,
            .row_bytes = row_bytes,
            .deadline = deadline_,
            .done = done_[r],
            .status = status_[r]};
  }

  // The next kernel of the rank's stream.
  void add(int rank, const moela::cuda::LaunchShape& shape, std::function<void()> body) {
    int& last = last_[static_cast<size_t>(rank)];
    grids_.push_back({.shape = shape, .body = std::move(body), .after = last});
    last = static_cast<int>(grids_.size()) - 1;
  }

  template <class Params>
  void add(const moela::plan::EpRowsSm90Plan& plan, void (*kernel)(Params, moela::plan::EpRowsSm90Plan),
           const Params& p) {
    add(p.exchange.memory.rank, {.grid = plan.grid, .block = plan.warps * 32, .smem_bytes = plan.smem_bytes},
        [=] { kernel(p, plan); });
  }

  // Runs all streams; "right" or the report. The status of every rank goes to a file.
  std::string run(const moela::emu::Options& options, const std::string& folder) {
    const moela::emu::Report report = moela::emu::run(grids_, options);
    for (size_t r = 0; r < status_.size(); ++r) save(folder + std::to_string(r) + ".status", status_[r], 8);
    return report.ok() ? "right" : report.text;
  }

 private:
  static void* zeros(size_t bytes) {
    void* memory = moela::emu::allocate(bytes);
    moela::emu::fill(memory, 0, bytes);
    return memory;
  }

  uint64_t deadline_;
  std::vector<moela::cuda::EpMemory> memories_;
  std::vector<uint64_t*> epochs_;
  std::vector<uint32_t*> done_;
  std::vector<uint64_t*> status_;
  std::vector<int> last_;
  std::vector<moela::emu::Grid> grids_;
};
