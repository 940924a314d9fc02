// Plan of mla_sparse on Hopper: tiles of heads, pieces of a token's entries. Pure: no torch, no CUDA,
// unit-tested.
#pragma once

#include "plan/mla_decode_sm90.h"

namespace moela::plan {

struct MlaSparseSm90Problem {
  int64_t T, H, topk, v_dim;
};

struct MlaSparseSm90Plan {
  int tiles;            // of a token's heads
  int pieces;           // of a token's entries; a tile and a piece of a token make a unit
  int piece_blocks;     // blocks of 64 entries of a piece but the last: where entries are cut
  int grid;             // thread blocks; each walks over units
  double microseconds;  // what the cost model expects; to compare plans with, not a promise
};

// Microseconds of an H100 by arithmetic (csrc/cuda/mla_sparse/DESIGN.md), to be measured: of a block of
// entries, of a unit before its first block and after its last, and of merging pieces: a launch, and their
// sums written to and read from L2.
struct MlaSparseSm90Costs {
  double block = 1.7, unit = 3.0, merge = 4.0, bytes_per_us = 3e6;
};

inline MlaSparseSm90Plan mla_sparse_sm90_plan_with(int pieces, const MlaSparseSm90Problem& p, int num_sms,
                                                   const MlaSparseSm90Costs& c = {}) {
  const auto ceil_div = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
  const int64_t blocks = p.topk > 0 ? ceil_div(p.topk, kMlaSm90Keys) : 1;
  const int64_t tiles = ceil_div(p.H, kMlaSm90Rows), piece_blocks = ceil_div(blocks, pieces);
  const int64_t used = ceil_div(blocks, piece_blocks), units = p.T * tiles * used;
  double microseconds =
      static_cast<double>(ceil_div(units, num_sms)) * (c.unit + c.block * static_cast<double>(piece_blocks));
  if (used > 1) {
    const auto sums = static_cast<double>(p.T * p.H * used * p.v_dim);
    microseconds += c.merge + 2 * sums * sizeof(float) / c.bytes_per_us;
  }
  return {.tiles = static_cast<int>(tiles),
          .pieces = static_cast<int>(used),
          .piece_blocks = static_cast<int>(piece_blocks),
          .grid = static_cast<int>(units < num_sms ? units : num_sms),
          .microseconds = microseconds};
}

// The cheapest of one piece and of as many as run at once; of equals the one with the fewest. A token's bits
// depend on the pieces, so there is one unless tokens are few.
inline MlaSparseSm90Plan plan_mla_sparse_sm90(const MlaSparseSm90Problem& p, int num_sms) {
  MlaSparseSm90Plan best = mla_sparse_sm90_plan_with(1, p, num_sms);
  const int blocks = best.piece_blocks;
  for (int pieces = 2; pieces <= blocks && p.T * best.tiles * pieces <= num_sms; ++pieces) {
    const MlaSparseSm90Plan plan = mla_sparse_sm90_plan_with(pieces, p, num_sms);
    if (plan.microseconds < best.microseconds) best = plan;
  }
  return best;
}

inline std::ostream& operator<<(std::ostream& out, const MlaSparseSm90Plan& p) {
  return out << p.tiles << " tiles of heads x " << p.pieces << " pieces of " << p.piece_blocks
             << " blocks of entries, on " << p.grid << " thread blocks";
}

}  // namespace moela::plan
