// Interface of the CUDA mla_sparse. Definition: python/moela/reference/mla_sparse.py.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/hopper/launch.h"
#include "cuda/mla_decode/mla_decode.h"
#include "plan/mla_sparse_sm90.h"

namespace moela::cuda {

// Strides are elements of their tensor; tokens are what the leading dimensions hold, evenly spaced.
struct MlaSparseArgs {
  MlaFloat dtype;  // of q and out, and of the cache if that is no bytes
  const void* q;   // [T, H, D], last dimension contiguous
  int64_t stride_qt, stride_qh;
  bool has_bytes;     // rows of the cache are codes, scale factors and a bfloat16 rest; q is bfloat16 then
  const void* cache;  // [num_pages, page_size, row], last dimension contiguous
  int64_t num_pages, page_size;
  int64_t stride_page, stride_slot;
  const int32_t* indices;  // [T, topk], last dimension contiguous
  int64_t stride_it;
  const int32_t* topk_length;  // [T], or null: topk
  int64_t stride_lt;
  const float* attn_sink;  // [H], or null
  int64_t stride_sh;
  float sm_scale;
  int T, H, D, topk, v_dim;
  void* out;   // [T, H, v_dim], contiguous
  float* lse;  // [T, H], contiguous
  // Of the plan's pieces, if there are several.
  float* piece_out;  // [pieces, T, H, v_dim]
  float* piece_lse;  // [pieces, T, H]
};

// "" or why these kernels do not take the arguments.
std::string why_not_mla_sparse(const MlaSparseArgs& args);

// Writes out and lse; T and H are positive. "" or why it could not be launched.
std::string launch_mla_sparse(const MlaSparseArgs& args, const plan::MlaSparseSm90Plan& plan, Stream stream);

}  // namespace moela::cuda
