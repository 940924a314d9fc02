// Interface of the CUDA mla_decode. Definition: python/moela/reference/mla_decode.py.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/hopper/launch.h"
#include "plan/mla_decode_sm90.h"

namespace moela::cuda {

enum class MlaFloat { kBFloat16, kFloat16 };

// Strides are elements of their tensor.
struct MlaDecodeArgs {
  MlaFloat dtype;  // of q and out, and of the cache if that is no bytes
  const void* q;   // [B, s_q, H, D], last dimension contiguous; [1, s_q, H, D] of a ragged batch
  int64_t stride_qb, stride_qj, stride_qh;
  bool has_bytes;     // rows of the cache are codes, scale factors and a bfloat16 rest; q is bfloat16 then
  const void* cache;  // [num_pages, page_size, row], last dimension contiguous
  int64_t num_pages, page_size;
  int64_t stride_page, stride_slot;
  const int32_t* block_table;  // [B, pages of a request], or null: page b is that of request b
  int64_t stride_tb;
  const int32_t* seqlens;       // [B]
  const int32_t* cu_seqlens_q;  // [B + 1]: a ragged batch; or null
  const int32_t* schedule;      // of the items, as mla_schedule makes it for the plan's number of parts
  int64_t stride_schedule;      // of its rows
  float sm_scale;
  int B, s_q, H, D, v_dim;
  bool causal;
  bool batch_invariant;  // what the schedule has to be
  // What the schedule calls requests, and their rows: those of a ragged batch are tiles, the others requests.
  int items, item_rows;
  const int32_t* tiles;  // [items, 4], as launch_mla_tiles writes them; null unless ragged
  void* out;             // as q, but for v_dim columns, contiguous
  float* lse;            // likewise, without columns
  // Of the pieces of split requests. A schedule that has more of them is one for longer requests.
  int64_t pieces;
  float* piece_out;  // [pieces, item_rows, v_dim]
  float* piece_lse;  // [pieces, item_rows]
};

// "" or why these kernels do not take the arguments.
std::string why_not_mla_decode(const MlaDecodeArgs& args);

// Of a ragged batch: writes tiles, and what is to be scheduled instead of seqlens. "" or why it could not be
// launched.
std::string launch_mla_tiles(const MlaDecodeArgs& args, int32_t* tiles, int32_t* lengths, Stream stream);

// Writes out and lse. "" or why it could not be launched.
std::string launch_mla_decode(const MlaDecodeArgs& args, const plan::MlaDecodeSm90Plan& plan, Stream stream);

}  // namespace moela::cuda
