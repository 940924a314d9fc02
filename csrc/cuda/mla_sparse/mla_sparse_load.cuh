// What the loading side of mla_sparse gathers: the rows that the entries of a token name.
#pragma once

#include "cuda/mla_decode/mla_gather.cuh"
#include "cuda/mla_sparse/mla_sparse_params.cuh"

namespace moela::cuda::sm90 {

template <class C>
class MlaSparseSource {
 public:
  struct Block {
    int token, block, entries;
    int new_tile;  // of heads, whose queries come with the unit's first block; -1: they are there
  };
  MOELA_DEVICE explicit MlaSparseSource(const MlaSparseParams& p) : p_(p), units_(p) {}

  MOELA_DEVICE bool next(Block* of) {
    const bool is_first = block_ >= unit_.end;
    while (block_ >= unit_.end) {
      if (!units_.next(&unit_)) return false;
      block_ = unit_.begin;
    }
    *of = {unit_.token, block_++, unit_.entries, is_first ? unit_.tile : -1};
    return true;
  }

  // What the entry says, or a negative number.
  MOELA_DEVICE int entry(const Block& of, int i) const {
    const int at = of.block * C::kKeys + i;
    return at < of.entries ? ldg(p_.args.indices + of.token * p_.args.stride_it + at) : -1;
  }
  MOELA_DEVICE int64_t offset(const Block&, int, int slot) const {
    const MlaSparseArgs& a = p_.args;
    constexpr int kElementBytes = C::kHasBytes ? 1 : 2;
    if (slot < 0 || slot >= a.num_pages * a.page_size) return -1;
    const auto page_size = static_cast<uint32_t>(a.page_size);
    const uint32_t page = static_cast<uint32_t>(slot) / page_size,
                   rest = static_cast<uint32_t>(slot) % page_size;
    return (page * a.stride_page + rest * a.stride_slot) * kElementBytes;
  }
  MOELA_DEVICE void note(int stage, int quarter, uint16_t found) const {
    if (lane() == 0) sts(smem_named<C>(stage) + static_cast<uint32_t>(quarter) * 2, found);
  }

  MOELA_DEVICE bool has_new_queries(const Block& of) const { return of.new_tile >= 0; }
  // Heads from H on lie outside of q and are loaded as zeros.
  MOELA_DEVICE void load_queries(const Block& of, bool issues) const {
    const int first = warp() - C::kFirstLoadingWarp;
    if (!issues) return;
    mbarrier_arrive_expect_tx(
        q_full<C>(), static_cast<uint32_t>((C::kPanels - first + C::kLoadingWarps - 1) / C::kLoadingWarps) *
                         C::kPanelBytes);
    for (int panel = first; panel < C::kPanels; panel += C::kLoadingWarps)
      tma_load_3d(smem_base() + C::kSmemQ + static_cast<uint32_t>(panel) * C::kPanelBytes, &p_.q,
                  panel * C::kPanel, of.new_tile * C::kRows, of.token, q_full<C>());
  }

 private:
  const MlaSparseParams& p_;
  MlaSparseUnits units_;
  MlaSparseUnit unit_ = {};
  int block_ = 0;
};

}  // namespace moela::cuda::sm90
