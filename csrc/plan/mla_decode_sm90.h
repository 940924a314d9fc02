// Plan of mla_decode on Hopper: tiles of rows, parts of the keys, boxes of TMA, memory. Pure: no torch, no
// CUDA, unit-tested.
#pragma once

#include <cstdint>
#include <numeric>
#include <ostream>

#include "plan/mla_schedule.h"

namespace moela::plan {

// Query rows of a tile: what the tensor core multiplies with a key at a time, or few of them as the right
// operand.
constexpr int kMlaSm90Rows = 64, kMlaSm90FewRows = 16;
constexpr int kMlaSm90Keys = kMlaBlock;

// Widths of the kernels that there are: columns of a row and those of its value.
struct MlaSm90Dims {
  int D, v_dim;
};
constexpr MlaSm90Dims kMlaSm90Dims[] = {{576, 512}, {512, 512}, {320, 256}};

struct MlaDecodeSm90Problem {
  int64_t B, s_q, H;  // s_q: tokens of a request, or, of a ragged batch, of all requests
  int64_t capacity;   // keys that a request may have
  int64_t page_size;
  bool is_paged;         // false: one page per request
  bool is_ragged;        // requests have any number of the tokens
  bool has_bytes;        // of a row of the cache
  bool has_rope;         // rows are wider than their values
  bool has_packed_rows;  // the s_q * H rows of a request are evenly spaced
  bool batch_invariant;  // a request's bits depend on that request only
};

// Which kernel: the plain loop, that of both warpgroups with scores of their own, that which gathers rows of
// bytes, or that of few rows of either cache. Results of the first three have the same bits.
enum class MlaDecodeSm90Path { kPlain, kSeesaw, kBytes, kFew };

struct MlaDecodeSm90Plan {
  MlaDecodeSm90Path path;
  // What is scheduled, each with so many rows: requests, or of a ragged batch their tiles, as many as there
  // may be.
  int64_t items, item_rows;
  int tiles;  // of an item's rows, so many in each
  int tile_rows;
  int num_parts;  // of all keys; a part and a tile make a thread block
  int key_box;    // rows of the cache that one TMA instruction loads: never of two pages
  int query_box;  // rows of q, likewise
};

constexpr bool has_packed_rows(int64_t s_q, int64_t H, int64_t stride_qj, int64_t stride_qh) {
  return s_q == 1 || H == 1 || stride_qj == H * stride_qh;
}

constexpr int kMlaSeesawRows =
    128;  // of a request, as far as shapes say, from which on the tensor core bounds

// The seesaw takes the place of the rope for its weights. Few rows are added up in another order, and how
// many tokens come with a row may not show in its bits if these are to be batch invariant. Of a ragged batch
// it is requests on average that have few; where one has more, their tiles read the same keys.
constexpr MlaDecodeSm90Path mla_decode_sm90_path(const MlaDecodeSm90Problem& p) {
  const int64_t requests = p.is_ragged ? p.B : 1;
  if (!p.batch_invariant && p.s_q * p.H <= requests * kMlaSm90FewRows) return MlaDecodeSm90Path::kFew;
  if (p.has_bytes) return MlaDecodeSm90Path::kBytes;
  const int64_t rows = (p.is_ragged ? 1 : p.s_q) * p.H;
  return p.has_rope && rows >= kMlaSeesawRows ? MlaDecodeSm90Path::kSeesaw : MlaDecodeSm90Path::kPlain;
}

// Every multiprocessor has a part of the keys and a tile of the rows, as far as there are that few tiles.
inline MlaDecodeSm90Plan mla_decode_sm90_plan_with(MlaDecodeSm90Path path, const MlaDecodeSm90Problem& p,
                                                   int num_sms) {
  const int tile_rows = path == MlaDecodeSm90Path::kFew ? kMlaSm90FewRows : kMlaSm90Rows;
  const int64_t rows = p.is_ragged ? tile_rows : p.s_q * p.H;
  const auto tiles = static_cast<int>(mla_ceil_div(rows, tile_rows));
  const auto box = [](int64_t extent, int64_t most) { return static_cast<int>(std::gcd(extent, most)); };
  return {
      .path = path,
      // A request's last tile need not be full, which is one of its own.
      .items = p.is_ragged ? p.B + p.s_q * p.H / tile_rows : p.B,
      .item_rows = rows,
      .tiles = tiles,
      .tile_rows = tile_rows,
      .num_parts = tiles < num_sms ? num_sms / tiles : 1,
      .key_box = p.is_paged ? box(p.page_size, kMlaSm90Keys) : kMlaSm90Keys,
      .query_box = p.has_packed_rows ? tile_rows : box(p.H, tile_rows),
  };
}

inline MlaDecodeSm90Plan plan_mla_decode_sm90(const MlaDecodeSm90Problem& p, int num_sms) {
  return mla_decode_sm90_plan_with(mla_decode_sm90_path(p), p, num_sms);
}

// Pieces that there is memory for, whatever the lengths: a part begins at most one in the midst of a request.
constexpr int64_t mla_decode_sm90_pieces(const MlaDecodeSm90Problem& p, const MlaDecodeSm90Plan& plan) {
  if (p.batch_invariant) return plan.items * mla_fixed_pieces_of(mla_ceil_div(p.capacity, kMlaBlock));
  return plan.items + plan.num_parts;
}

inline std::ostream& operator<<(std::ostream& out, const MlaDecodeSm90Plan& p) {
  constexpr const char* kNames[] = {"plain", "seesaw", "bytes", "few"};
  return out << kNames[static_cast<int>(p.path)] << ": " << p.items << " x " << p.item_rows << " rows, "
             << p.tiles << " tiles of " << p.tile_rows << " x " << p.num_parts << " parts of keys, boxes of "
             << p.key_box << " keys and " << p.query_box << " queries";
}

}  // namespace moela::plan
