// What the loading side of mla_decode gathers of a cache of bytes: the keys of a request, in order. Those
// beyond its length become zeros, and their pages are not looked up.
#pragma once

#include "cuda/mla_decode/mla_gather.cuh"
#include "cuda/mla_decode/mla_load.cuh"

namespace moela::cuda::sm90 {

template <class C>
class MlaBytesSource {
 public:
  struct Block {
    int request, block, seqlen;
    int q_row;  // of the queries that come with the piece's first block; -1: they are there
  };
  MOELA_DEVICE explicit MlaBytesSource(const MlaDecodeParams& p) : p_(p), pieces_(pieces_of_block<C>(p)) {}

  MOELA_DEVICE bool next(Block* of) {
    const bool is_first = block_ >= piece_.end;
    while (block_ >= piece_.end) {
      if (!pieces_.next(&piece_)) return false;
      block_ = piece_.begin;
    }
    *of = {piece_.rows.request, block_++, piece_.seqlen, is_first ? q_row_of(p_.args, piece_.rows) : -1};
    return true;
  }

  // The page of a key, or -1 beyond the request's length.
  MOELA_DEVICE int entry(const Block& of, int i) const {
    const MlaDecodeArgs& a = p_.args;
    const int key = of.block * C::kKeys + i;
    if (key >= of.seqlen) return -1;
    if (a.block_table == nullptr) return of.request;
    return ldg(a.block_table + of.request * a.stride_tb + key / static_cast<int>(a.page_size));
  }
  MOELA_DEVICE int64_t offset(const Block& of, int i, int page) const {
    const MlaDecodeArgs& a = p_.args;
    const int slot = (of.block * C::kKeys + i) % static_cast<int>(a.page_size);
    return page < 0 ? -1 : page * a.stride_page + slot * a.stride_slot;
  }
  MOELA_DEVICE void note(int, int, uint16_t) const {}  // lengths say which rows there are

  MOELA_DEVICE bool has_new_queries(const Block& of) const { return of.q_row >= 0; }
  MOELA_DEVICE void load_queries(const Block& of, bool issues) const {
    sm90::load_queries<C>(p_, of.request, of.q_row, issues);
  }

 private:
  const MlaDecodeParams& p_;
  MlaPieces pieces_;
  MlaPiece piece_ = {};
  int block_ = 0;
};

template <class C>
MOELA_DEVICE void load_bytes(const MlaDecodeParams& p) {
  if (elect_one()) tma_prefetch_map(&p.q);
  gather_rows<C>(MlaBytesSource<C>(p), p.args.cache);
}

}  // namespace moela::cuda::sm90
