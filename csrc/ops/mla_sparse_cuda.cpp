// Torch side of the CUDA mla_sparse: plan, memory, launch. Python has checked the arguments (ops/_spec.py)
// and keeps what the kernel does not take (ops/_mla_cuda.py).
#include <torch/csrc/stable/accelerator.h>

#include <limits>
#include <optional>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/mla_sparse/mla_sparse.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_sparse";

void mla_sparse_out(const Tensor& q, const Tensor& cache, const Tensor& indices, double sm_scale,
                    int64_t v_dim, std::optional<Tensor> attn_sink, std::optional<Tensor> topk_length,
                    Tensor out, Tensor lse) {
  const FlatRows tokens(q, 2), entries(indices, 1);
  const int64_t T = tokens.count, H = q.size(q.dim() - 2), topk = indices.size(indices.dim() - 1);
  if (T * H == 0) return;
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const std::optional<FlatRows> lengths =
      topk_length ? std::optional<FlatRows>(FlatRows(*topk_length, 0)) : std::nullopt;
  const plan::MlaSparseSm90Plan plan = plan::plan_mla_sparse_sm90(
      {.T = T, .H = H, .topk = topk, .v_dim = v_dim}, num_multiprocessors(kOp, device));
  if (T * plan.tiles * plan.pieces > std::numeric_limits<int>::max())
    fail(kOp, "q", "at most 2^31 - 1 tiles of 64 heads", T * plan.tiles);
  const bool has_bytes = cache.scalar_type() == ScalarType::Byte;
  cuda::MlaSparseArgs args = {
      .dtype = q.scalar_type() == ScalarType::BFloat16 ? cuda::MlaFloat::kBFloat16 : cuda::MlaFloat::kFloat16,
      .q = tokens.tensor.const_data_ptr(),
      .stride_qt = tokens.stride,
      .stride_qh = tokens.tensor.stride(q.dim() - 2),
      .has_bytes = has_bytes,
      .cache = cache.const_data_ptr(),
      .num_pages = cache.size(0),
      .page_size = cache.size(1),
      .stride_page = cache.stride(0),
      .stride_slot = cache.stride(1),
      .indices = static_cast<const int32_t*>(entries.tensor.const_data_ptr()),
      .stride_it = entries.stride,
      .topk_length = lengths ? static_cast<const int32_t*>(lengths->tensor.const_data_ptr()) : nullptr,
      .stride_lt = lengths ? lengths->stride : 0,
      .attn_sink = attn_sink ? static_cast<const float*>(attn_sink->const_data_ptr()) : nullptr,
      .stride_sh = attn_sink ? attn_sink->stride(0) : 0,
      .sm_scale = static_cast<float>(sm_scale),
      .T = static_cast<int>(T),
      .H = static_cast<int>(H),
      .D = static_cast<int>(q.size(q.dim() - 1)),
      .topk = static_cast<int>(topk),
      .v_dim = static_cast<int>(v_dim),
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .piece_out = nullptr,
      .piece_lse = nullptr,
  };
  std::string error = cuda::why_not_mla_sparse(args);
  if (!error.empty()) throw std::invalid_argument(std::string(kOp) + ": " + error);
  const int64_t piece_rows = plan.pieces > 1 ? plan.pieces * T * H : 0;
  const Tensor pieces = empty_cuda(piece_rows * (v_dim + 1), ScalarType::Float, device);
  args.piece_out = static_cast<float*>(pieces.mutable_data_ptr());
  args.piece_lse = args.piece_out + piece_rows * v_dim;
  error = cuda::launch_mla_sparse(args, plan, current_stream(device));
  if (!error.empty()) throw std::runtime_error(std::string(kOp) + ": " + error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) { m.impl("mla_sparse_out", TORCH_BOX(&mla_sparse_out)); }

}  // namespace moela
