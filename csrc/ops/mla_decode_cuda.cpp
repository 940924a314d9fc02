// Torch side of the CUDA mla_decode: plan, memory, launch. Python has checked the arguments (ops/_spec.py)
// and keeps what the kernel does not take (ops/_mla_cuda.py).
#include <torch/csrc/stable/accelerator.h>

#include <optional>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/mla_decode/mla_decode.h"
#include "cuda/mla_schedule/mla_schedule.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_decode";

plan::MlaDecodeSm90Problem problem_of(const Tensor& q, const Tensor& cache,
                                      const std::optional<Tensor>& block_table) {
  return {.B = q.size(0),
          .s_q = q.size(1),
          .H = q.size(2),
          .capacity = cache.size(1) * (block_table ? block_table->size(1) : 1),
          .page_size = cache.size(1),
          .is_paged = block_table.has_value(),
          .has_packed_rows = plan::has_packed_rows(q.size(1), q.size(2), q.stride(1), q.stride(2))};
}

void mla_decode_out(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                    const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal,
                    std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> schedule, bool batch_invariant,
                    Tensor out, Tensor lse) {
  if (cu_seqlens_q) fail(kOp, "cu_seqlens_q", "None (the CUDA kernel takes [B, s_q, H, D])", "a tensor");
  const int64_t B = q.size(0), rows = q.size(1) * q.size(2);
  if (B * rows == 0) return;
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const plan::MlaDecodeSm90Problem problem = problem_of(q, cache, block_table);
  plan::MlaDecodeSm90Plan plan = plan::plan_mla_decode_sm90(problem, num_multiprocessors(kOp, device));
  if (schedule) plan.num_parts = static_cast<int>(schedule->size(0) - plan::mla_schedule_rows(B, 0));
  const auto int32s = [](const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); };
  cuda::MlaDecodeArgs args = {
      .dtype = q.scalar_type() == ScalarType::BFloat16 ? cuda::MlaFloat::kBFloat16 : cuda::MlaFloat::kFloat16,
      .q = q.const_data_ptr(),
      .stride_qb = q.stride(0),
      .stride_qj = q.stride(1),
      .stride_qh = q.stride(2),
      .cache = cache.const_data_ptr(),
      .num_pages = cache.size(0),
      .page_size = cache.size(1),
      .stride_page = cache.stride(0),
      .stride_slot = cache.stride(1),
      .block_table = block_table ? int32s(*block_table) : nullptr,
      .stride_tb = block_table ? block_table->stride(0) : 0,
      .seqlens = int32s(seqlens),
      .schedule = schedule ? int32s(*schedule) : nullptr,
      .stride_schedule = schedule ? schedule->stride(0) : plan::kMlaScheduleColumns,
      .sm_scale = static_cast<float>(sm_scale),
      .B = static_cast<int>(B),
      .s_q = static_cast<int>(q.size(1)),
      .H = static_cast<int>(q.size(2)),
      .D = static_cast<int>(q.size(3)),
      .v_dim = static_cast<int>(v_dim),
      .causal = causal,
      .batch_invariant = batch_invariant,
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .pieces = plan::mla_decode_sm90_pieces(problem, plan.num_parts, batch_invariant),
      .piece_out = nullptr,
      .piece_lse = nullptr,
  };
  std::string error = cuda::why_not_mla_decode(args);
  if (!error.empty()) throw std::invalid_argument(std::string(kOp) + ": " + error);
  if (!schedule) {
    schedule = empty_cuda(plan::mla_schedule_rows(B, plan.num_parts) * plan::kMlaScheduleColumns,
                          ScalarType::Int, device);
    args.schedule = int32s(*schedule);
    check_launch(kOp,
                 cuda::launch_mla_schedule({.seqlens = args.seqlens,
                                            .B = args.B,
                                            .rows = static_cast<int>(rows),
                                            .num_parts = plan.num_parts,
                                            .batch_invariant = batch_invariant,
                                            .schedule = static_cast<int32_t*>(schedule->mutable_data_ptr())},
                                           stream));
  }
  const int64_t piece_rows = args.pieces * rows;
  const Tensor pieces = empty_cuda(piece_rows * (v_dim + 1), ScalarType::Float, device);
  args.piece_out = static_cast<float*>(pieces.mutable_data_ptr());
  args.piece_lse = args.piece_out + piece_rows * v_dim;
  error = cuda::launch_mla_decode(args, plan, stream);
  if (!error.empty()) throw std::runtime_error(std::string(kOp) + ": " + error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) { m.impl("mla_decode_out", TORCH_BOX(&mla_decode_out)); }

}  // namespace moela
