// Plan of the kernels that move rows between ranks on Hopper: how many warps, each with two rows in shared
// memory. Pure: no torch, no CUDA, unit-tested.
#pragma once

#include <cstdint>
#include <ostream>

namespace moela::plan {

struct EpRowsSm90Plan {
  int warps;           // of a block; 0: two rows do not fit into shared memory
  uint32_t row_bytes;  // of shared memory that a row takes
  uint32_t smem_bytes;
  int grid;
};

constexpr int kEpSm90MaxWarps = 8, kEpSm90Stages = 2;
constexpr uint32_t kEpSm90ZeroBytes = 2048;  // of zeros, for rows beyond the last

// Of a block: two mbarriers per warp, a word, two words per rank, the zeros; a multiple of 128.
constexpr uint32_t ep_sm90_head_bytes(int num_ranks) {
  const uint32_t words = kEpSm90MaxWarps * kEpSm90Stages * 8 + 16 + static_cast<uint32_t>(num_ranks) * 8;
  return (words + 127) / 128 * 128 + kEpSm90ZeroBytes;
}

// rows: at most this many go through the kernel. num_blocks: at most, where ranks share a device its SMs
// divided by them.
inline EpRowsSm90Plan plan_ep_rows_sm90(uint32_t row_bytes, int64_t rows, int num_ranks, int num_blocks) {
  constexpr uint32_t kSmemBytes = 227 * 1024;
  const uint32_t head = ep_sm90_head_bytes(num_ranks), stage = (row_bytes + 127) / 128 * 128;
  const uint32_t fit = (kSmemBytes - head) / (kEpSm90Stages * stage);
  const int warps = fit < kEpSm90MaxWarps ? static_cast<int>(fit) : kEpSm90MaxWarps;
  if (warps == 0) return {.warps = 0, .row_bytes = stage, .smem_bytes = 0, .grid = 0};
  const int64_t blocks = (rows + warps - 1) / warps;
  return {.warps = warps,
          .row_bytes = stage,
          .smem_bytes = head + static_cast<uint32_t>(warps) * kEpSm90Stages * stage,
          .grid = blocks < 1            ? 1
                  : blocks < num_blocks ? static_cast<int>(blocks)
                                        : num_blocks};
}

inline std::ostream& operator<<(std::ostream& out, const EpRowsSm90Plan& p) {
  return out << p.warps << " warps with two rows of " << p.row_bytes << " bytes, on " << p.grid << " blocks";
}

}  // namespace moela::plan
