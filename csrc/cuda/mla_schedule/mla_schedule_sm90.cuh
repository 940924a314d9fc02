// mla_schedule on Hopper: whole numbers, as the definition says.
//
// Bound: latency, of some passes over the lengths and of barriers. Grid: one block; a thread owns the
// requests tid, tid + kThreads ... Invariant: where request b begins in cost, and with it the parts that
// begin in b, follows from a prefix sum, so requests are looked at a block's worth at a time and nothing is
// kept of them.
#pragma once

#include "cuda/block/scan.cuh"
#include "cuda/mla_schedule/mla_schedule.h"
#include "plan/mla_schedule.h"

namespace moela::cuda::sm90 {

struct MlaScheduleConfig {
  static constexpr int kWarps = 16, kThreads = kWarps * 32;
  static constexpr uint32_t kSmemBytes = kWarps * 8;  // smem_scratch [kWarps] int64
};

MOELA_DEVICE void write_row(const MlaScheduleParams& p, int64_t row, int64_t x, int64_t y, int64_t z,
                            int64_t w) {
  stg(reinterpret_cast<Vec4*>(p.schedule) + row, Vec4{static_cast<uint32_t>(x), static_cast<uint32_t>(y),
                                                      static_cast<uint32_t>(z), static_cast<uint32_t>(w)});
}

// Pieces of a request that is cut at fixed places only, else 1.
MOELA_DEVICE int64_t uncut_pieces(const MlaScheduleParams& p, int64_t blocks) {
  return p.batch_invariant ? plan::mla_fixed_pieces_of(blocks) : 1;
}

// The cost between the beginnings of two parts; 0: every request is a part of its own.
MOELA_DEVICE int64_t share_of_part(const MlaScheduleParams& p, int64_t piece_cost) {
  constexpr int kWarps = MlaScheduleConfig::kWarps, kThreads = MlaScheduleConfig::kThreads;
  int64_t cost = 0, most = 0;
  for (int b = tid(); b < p.B; b += kThreads) {
    const int64_t blocks = plan::mla_blocks_of(ldg(p.seqlens + b));
    cost += blocks + piece_cost * uncut_pieces(p, blocks);
    most = blocks > most ? blocks : most;
  }
  const int64_t total = block_sums<kWarps>(cost, smem_base()).all;
  if (p.batch_invariant) return plan::mla_ceil_div(total, p.num_parts);
  most = -block_min<kWarps>(-most, smem_base());

  constexpr int64_t kMost = INT64_MAX;
  int64_t least = kMost, best = p.num_parts;  // of this thread's numbers of parts, the first of the cheapest
  for (int64_t used = tid() + 1; used <= p.num_parts; used += kThreads) {
    const int64_t of_used = plan::mla_split_cost(total, used, p.rows, p.num_parts);
    if (of_used >= least) continue;
    least = of_used;
    best = used;
  }
  const int64_t cheapest = block_min<kWarps>(least, smem_base());
  best = block_min<kWarps>(least == cheapest ? best : kMost, smem_base());
  if (p.B <= p.num_parts && plan::mla_whole_cost(most, p.rows) <= cheapest) return 0;
  return plan::mla_ceil_div(total, best);
}

// Where a request lies: in cost, and which parts [first_part, end_part) begin in it.
struct ScheduledRequest {
  int64_t begin, end;
  int64_t first_part, end_part;
};

MOELA_DEVICE ScheduledRequest place_request(const MlaScheduleParams& p, int b, int64_t share, int64_t begin,
                                            int64_t end) {
  const int64_t parts = p.num_parts + 1;
  const auto first_at = [&](int64_t cost) {  // the first part that begins there or later
    const int64_t part = plan::mla_ceil_div(cost, share);
    return part < parts ? part : parts;
  };
  if (b >= p.B) return {begin, end, 0, 0};
  if (share == 0) return {begin, end, b, b + 1};
  return {begin, end, first_at(begin), first_at(end)};
}

// Of the parts that begin in a request, those that cut it: they do not begin with its first block.
MOELA_DEVICE int64_t cuts_in(const ScheduledRequest& r, int64_t share, int64_t piece_cost) {
  if (share == 0) return 0;
  const int64_t whole = (r.begin + piece_cost) / share + 1;  // the first part with a later block
  return whole >= r.end_part ? 0 : r.end_part - (whole > r.first_part ? whole : r.first_part);
}

// The boundaries of a request's parts, by the warp that owns it.
MOELA_DEVICE void write_parts(const MlaScheduleParams& p, int b, const ScheduledRequest& r,
                              int64_t first_piece, int64_t share, int64_t piece_cost) {
  for (int64_t part = r.first_part + lane(); part < r.end_part; part += 32) {
    const int64_t block =
        share == 0 ? 0 : plan::mla_block_at(part * share - r.begin, piece_cost, p.batch_invariant);
    // Every part from the first that cuts the request begins another piece of it.
    const int64_t whole = share == 0 ? part : (r.begin + piece_cost) / share;
    const int64_t uncut = whole > r.first_part - 1 ? whole : r.first_part - 1;
    const int64_t piece = p.batch_invariant ? block / plan::kMlaPieceBlocks : block > 0 ? part - uncut : 0;
    write_row(p, 1 + part, b, block, first_piece + piece, 0);
  }
}

MOELA_KERNEL(MlaScheduleConfig::kThreads)
mla_schedule_kernel(MOELA_PARAM MlaScheduleParams p) {
  constexpr int kWarps = MlaScheduleConfig::kWarps, kThreads = MlaScheduleConfig::kThreads;
  griddep_wait();
  const int64_t piece_cost = plan::mla_piece_cost(p.rows), share = share_of_part(p, piece_cost);
  int64_t cost_before = 0, pieces_before = 0;
  for (int first = 0; first < p.B; first += kThreads) {
    const int b = first + tid();
    const int32_t seqlen = b < p.B ? ldg(p.seqlens + b) : 0;
    const int64_t blocks = plan::mla_blocks_of(seqlen), uncut = b < p.B ? uncut_pieces(p, blocks) : 0;
    const int64_t cost = blocks + piece_cost * uncut;
    const Sums costs = block_sums<kWarps>(cost, smem_base());
    const int64_t begin = cost_before + costs.before;
    const ScheduledRequest r = place_request(p, b, share, begin, begin + cost);
    const int64_t cuts = p.batch_invariant || b >= p.B ? 0 : cuts_in(r, share, piece_cost);
    const Sums pieces = block_sums<kWarps>(uncut + cuts, smem_base());
    const int64_t first_piece = pieces_before + pieces.before;
    if (b < p.B) write_row(p, p.num_parts + 2 + b, first_piece, seqlen, 0, 0);
    const uint32_t owners = vote_ballot(r.first_part < r.end_part);
    for (int owner = 0; owner < 32; ++owner) {
      if ((owners >> owner & 1) == 0) continue;
      const ScheduledRequest theirs = {shfl64(r.begin, owner), shfl64(r.end, owner),
                                       shfl64(r.first_part, owner), shfl64(r.end_part, owner)};
      write_parts(p, b - lane() + owner, theirs, shfl64(first_piece, owner), share, piece_cost);
    }
    cost_before += costs.all;
    pieces_before += pieces.all;
  }
  const int64_t past = p.B == 0 ? 0 : share == 0 ? p.B : plan::mla_ceil_div(cost_before, share);
  for (int64_t part = past + tid(); part <= p.num_parts; part += kThreads)
    write_row(p, 1 + part, p.B, 0, pieces_before, 0);
  if (tid() == 0) {
    write_row(p, 0, p.B, p.num_parts, p.rows, p.batch_invariant);
    write_row(p, p.num_parts + 2 + p.B, pieces_before, 0, 0, 0);
  }
  griddep_launch();
}

}  // namespace moela::cuda::sm90

namespace moela::cuda {

LaunchStatus launch_mla_schedule(const MlaScheduleParams& p, Stream stream) {
  using C = sm90::MlaScheduleConfig;
  const LaunchShape shape = {
      .grid = 1, .block = C::kThreads, .smem_bytes = C::kSmemBytes, .overlaps_previous = true};
  return launch(shape, stream, &sm90::mla_schedule_kernel, p);
}

}  // namespace moela::cuda
