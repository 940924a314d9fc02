// Interface of the CUDA mla_decode. Definition: python/moela/reference/mla_decode.py.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/hopper/launch.h"
#include "plan/mla_decode_sm90.h"

namespace moela::cuda {

enum class MlaFloat { kBFloat16, kFloat16 };  // of q, cache and out

// Strides are elements.
struct MlaDecodeArgs {
  MlaFloat dtype;
  const void* q;  // [B, s_q, H, D], last dimension contiguous
  int64_t stride_qb, stride_qj, stride_qh;
  const void* cache;  // [num_pages, page_size, D], last dimension contiguous
  int64_t num_pages, page_size;
  int64_t stride_page, stride_slot;
  const int32_t* block_table;  // [B, pages of a request], or null: page b is that of request b
  int64_t stride_tb;
  const int32_t* seqlens;   // [B]
  const int32_t* schedule;  // as mla_schedule makes it, for the plan's number of parts
  int64_t stride_schedule;  // of its rows
  float sm_scale;
  int B, s_q, H, D, v_dim;
  bool causal;
  bool batch_invariant;  // what the schedule has to be
  void* out;             // [B, s_q, H, v_dim], contiguous
  float* lse;            // [B, s_q, H], contiguous
  // Of the pieces of split requests. A schedule that has more of them is one for longer requests.
  int64_t pieces;
  float* piece_out;  // [pieces, s_q * H, v_dim]
  float* piece_lse;  // [pieces, s_q * H]
};

// "" or why these kernels do not take the arguments.
std::string why_not_mla_decode(const MlaDecodeArgs& args);

// Writes out and lse. "" or why it could not be launched.
std::string launch_mla_decode(const MlaDecodeArgs& args, const plan::MlaDecodeSm90Plan& plan, Stream stream);

}  // namespace moela::cuda
