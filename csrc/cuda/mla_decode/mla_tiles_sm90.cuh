// The tiles of a ragged batch, which is scheduled as one of them: each is attended like a request, over the
// keys that its last row sees.
//
// Bound: latency, of some passes over the requests. Grid: one block; a thread owns the requests tid, tid +
// kThreads ..., and its warp writes their tiles. Invariant: a request's tiles come after those of the
// requests before it; what is left over of them has no rows and no keys.
#pragma once

#include "cuda/block/scan.cuh"
#include "cuda/mla_decode/mla_params.cuh"

namespace moela::cuda::sm90 {

struct MlaTilesConfig {
  static constexpr int kWarps = 16, kThreads = kWarps * 32;
  static constexpr uint32_t kSmemBytes = kWarps * 8;  // smem_scratch [kWarps] int64
};

struct MlaTilesParams {
  const int32_t* cu_seqlens_q;  // [B + 1]
  const int32_t* seqlens;       // [B]
  int B, H, items;
  int item_rows;  // of a tile
  bool causal;
  int32_t* tiles;    // [items, 4]: request, first row, queries, first query; at a multiple of 16 bytes
  int32_t* lengths;  // [items]
};

MOELA_DEVICE void write_tile(const MlaTilesParams& p, int64_t item, int request, int first_row, int queries,
                             int first_query, int length) {
  if (item >= p.items) return;  // of wrong cu_seqlens_q
  stg(reinterpret_cast<Vec4*>(p.tiles) + item,
      Vec4{static_cast<uint32_t>(request), static_cast<uint32_t>(first_row), static_cast<uint32_t>(queries),
           static_cast<uint32_t>(first_query)});
  stg(p.lengths + item, length);
}

MOELA_KERNEL(MlaTilesConfig::kThreads)
mla_tiles_kernel(MOELA_PARAM MlaTilesParams p) {
  constexpr int kWarps = MlaTilesConfig::kWarps, kThreads = MlaTilesConfig::kThreads;
  griddep_wait();
  int64_t before = 0;
  for (int first = 0; first < p.B; first += kThreads) {
    const int request = first + tid(), own_warp = request - lane();
    const bool is_request = request < p.B;
    const int begin = is_request ? ldg(p.cu_seqlens_q + request) : 0;
    const int end = is_request ? ldg(p.cu_seqlens_q + request + 1) : 0;
    const int seqlen = is_request ? ldg(p.seqlens + request) : 0, queries = end > begin ? end - begin : 0;
    const auto rows = static_cast<int64_t>(queries) * p.H;
    const Sums tiles = block_sums<kWarps>(plan::mla_ceil_div(rows, p.item_rows), smem_base());
    for (int owner = 0; owner < 32; ++owner) {
      const int theirs = shfl(queries, owner), from = shfl(begin, owner), keys = shfl(seqlen, owner);
      const int64_t at = before + shfl64(tiles.before, owner);
      for (int row = lane() * p.item_rows; row < theirs * p.H; row += 32 * p.item_rows) {
        const int last = row + p.item_rows < theirs * p.H ? row + p.item_rows - 1 : theirs * p.H - 1;
        const int seen = p.causal ? keys - (theirs - 1 - last / p.H) : keys;
        write_tile(p, at + row / p.item_rows, own_warp + owner, row, theirs, from, seen > 0 ? seen : 0);
      }
    }
    before += tiles.all;
  }
  for (int64_t item = before + tid(); item < p.items; item += kThreads) write_tile(p, item, 0, 0, 0, 0, 0);
  griddep_launch();
}

}  // namespace moela::cuda::sm90
