// The loading side of mla_decode: queries and blocks of keys by TMA, in boxes that never reach from one page
// into another. The boxes of a tile are dealt to the loading warps.
#pragma once

#include "cuda/mla_decode/mla_decode_work.cuh"

namespace moela::cuda::sm90 {

// Where the rows of a tile are: of each group of box rows the outer and the inner coordinate. A tile has at
// most 64 groups, two per lane.
struct MlaRowGroups {
  int outer[2], inner[2];
  MOELA_DEVICE int outer_of(int group) const { return shfl(group < 32 ? outer[0] : outer[1], group % 32); }
  MOELA_DEVICE int inner_of(int group) const { return shfl(group < 32 ? inner[0] : inner[1], group % 32); }
};

// This warp's boxes of some panels of a tile of kRows rows. panel_of(i) is the i-th; load(to, column, outer,
// inner) is one copy, by the thread that issues.
template <class C, int kRows, class PanelOf, class Load>
MOELA_DEVICE void load_boxes(const MlaRowGroups& groups, int box, int panels, const PanelOf& panel_of,
                             SmemAddr tile, SmemAddr barrier, bool issues, const Load& load) {
  const int boxes = kRows / box * panels, first = warp() - C::kFirstLoadingWarp;
  const auto box_bytes = static_cast<uint32_t>(box * C::kPanel * 2);
  const auto mine = static_cast<uint32_t>((boxes - first + C::kLoadingWarps - 1) / C::kLoadingWarps);
  if (issues) mbarrier_arrive_expect_tx(barrier, mine * box_bytes);
  for (int i = first; i < boxes; i += C::kLoadingWarps) {
    const int group = i / panels, panel = panel_of(i % panels);
    const int outer = groups.outer_of(group), inner = groups.inner_of(group);
    if (issues)
      load(tile + static_cast<uint32_t>(panel * kRows * C::kPanel * 2) +
               static_cast<uint32_t>(group) * box_bytes,
           panel * C::kPanel, outer, inner);
  }
}

MOELA_DEVICE int all_panels(int i) { return i; }

// Where in q a tile begins: a row of its request, or, of a ragged batch, of all requests.
MOELA_DEVICE int q_row_of(const MlaDecodeArgs& a, const MlaRows& rows) {
  return a.tiles == nullptr ? rows.first : rows.first_query * a.H + rows.first;
}

// Rows beyond those of the request lie outside of q and are loaded as zeros, or are the next request's.
template <class C>
MOELA_DEVICE void load_queries(const MlaDecodeParams& p, int request, int q_row, bool issues) {
  MlaRowGroups groups;
  MOELA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = q_row + (half * 32 + lane()) * p.query_box;
    groups.outer[half] = row / p.inner_rows;
    groups.inner[half] = row % p.inner_rows;
  }
  load_boxes<C, C::kRows>(groups, p.query_box, C::kPanels, all_panels, smem_base() + C::kSmemQ, q_full<C>(),
                          issues, [&](SmemAddr to, int column, int outer, int inner) {
                            tma_load_4d(to, &p.q, column, inner, outer, p.args.tiles == nullptr ? request : 0,
                                        q_full<C>());
                          });
}

// Boxes without a key of the request are loaded from beyond a page, as zeros: their pages are not looked up.
template <class C>
MOELA_DEVICE MlaRowGroups find_keys(const MlaDecodeParams& p, const MlaPiece& piece, int block) {
  const MlaDecodeArgs& a = p.args;
  const auto page_size = static_cast<int>(a.page_size);
  MlaRowGroups groups;
  MOELA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int key = block * C::kKeys + (half * 32 + lane()) * p.key_box;
    const bool is_used = (half * 32 + lane()) * p.key_box < C::kKeys && key < piece.seqlen;
    if (!is_used) {
      groups.outer[half] = 0;
      groups.inner[half] = page_size;
    } else if (a.block_table == nullptr) {
      groups.outer[half] = piece.rows.request;
      groups.inner[half] = key;
    } else {
      groups.outer[half] = ldg_nc(a.block_table + piece.rows.request * a.stride_tb + key / page_size);
      groups.inner[half] = key % page_size;
    }
  }
  return groups;
}

// Panels of a block of keys into a stage.
template <class C, class PanelOf>
MOELA_DEVICE void load_keys(const MlaDecodeParams& p, const MlaRowGroups& keys, int panels,
                            const PanelOf& panel_of, int stage, SmemAddr barrier, bool issues) {
  load_boxes<C, C::kKeys>(keys, p.key_box, panels, panel_of,
                          smem_base() + C::kSmemKv + static_cast<uint32_t>(stage) * C::kTileBytes, barrier,
                          issues, [&](SmemAddr to, int column, int page, int slot) {
                            tma_load_3d(to, &p.cache, column, slot, page, barrier);
                          });
}

// load_block(keys, at, issues): a block of keys into a stage.
template <class C, class LoadBlock>
MOELA_DEVICE void load_pieces(const MlaDecodeParams& p, const LoadBlock& load_block) {
  const bool issues = elect_one();
  if (issues) {
    tma_prefetch_map(&p.q);
    tma_prefetch_map(&p.cache);
  }
  MlaPosition<C> at;
  uint32_t q_parity = 0;
  MlaPieces pieces = pieces_of_block<C>(p);
  for (MlaPiece piece; pieces.next(&piece);) {
    for (int block = piece.begin; block < piece.end; ++block, at.advance()) {
      load_block(find_keys<C>(p, piece, block), at, issues);
      if (block > piece.begin) continue;
      // After the first keys, so that these need not wait until the queries before are done with.
      if (issues) mbarrier_wait(q_empty<C>(), q_parity ^ 1);
      load_queries<C>(p, piece.rows.request, q_row_of(p.args, piece.rows), issues);
      q_parity ^= 1;
    }
  }
}

template <class C>
MOELA_DEVICE void load_whole_blocks(const MlaDecodeParams& p) {
  load_pieces<C>(p, [&](const MlaRowGroups& keys, const MlaPosition<C>& at, bool issues) {
    if (issues) mbarrier_wait(kv_empty<C>(at.stage), at.parity ^ 1);
    load_keys<C>(p, keys, C::kPanels, all_panels, at.stage, kv_full<C>(at.stage), issues);
  });
}

}  // namespace moela::cuda::sm90
