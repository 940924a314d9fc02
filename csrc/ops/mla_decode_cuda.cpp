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

const int32_t* int32s(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }
const int32_t* int32s(const std::optional<Tensor>& t) { return t ? int32s(*t) : nullptr; }

// q with a dimension of requests: that of one, which has all tokens, for a ragged batch.
struct Queries {
  int64_t s_q, H, stride_qb, stride_qj, stride_qh;
  Queries(const Tensor& q, bool is_ragged)
      : s_q(q.size(is_ragged ? 0 : 1)),
        H(q.size(is_ragged ? 1 : 2)),
        stride_qb(is_ragged ? 0 : q.stride(0)),
        stride_qj(q.stride(is_ragged ? 0 : 1)),
        stride_qh(q.stride(is_ragged ? 1 : 2)) {}
};

// Makes the schedule that the caller has not: of a ragged batch for its tiles, which come first.
Tensor make_schedule(cuda::MlaDecodeArgs& args, const plan::MlaDecodeSm90Plan& plan, int32_t* tiles,
                     int32_t* lengths, int32_t device, cudaStream_t stream) {
  Tensor schedule =
      empty_cuda(plan::mla_schedule_rows(plan.items, plan.num_parts) * plan::kMlaScheduleColumns,
                 ScalarType::Int, device);
  args.schedule = int32s(schedule);
  if (args.cu_seqlens_q != nullptr) {
    const std::string error = cuda::launch_mla_tiles(args, tiles, lengths, stream);
    if (!error.empty()) throw std::runtime_error(std::string(kOp) + ": " + error);
  }
  check_launch(kOp,
               cuda::launch_mla_schedule({.seqlens = args.cu_seqlens_q == nullptr ? args.seqlens : lengths,
                                          .B = args.items,
                                          .rows = args.item_rows,
                                          .num_parts = plan.num_parts,
                                          .batch_invariant = args.batch_invariant,
                                          .schedule = static_cast<int32_t*>(schedule.mutable_data_ptr())},
                                         stream));
  return schedule;
}

void mla_decode_out(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                    const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal,
                    std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> schedule, bool batch_invariant,
                    Tensor out, Tensor lse) {
  const bool is_ragged = cu_seqlens_q.has_value();
  const int64_t B = seqlens.size(0);
  const Queries queries(q, is_ragged);
  if (B * queries.s_q * queries.H == 0) return;
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const plan::MlaDecodeSm90Problem problem = {
      .B = B,
      .s_q = queries.s_q,
      .H = queries.H,
      .capacity = cache.size(1) * (block_table ? block_table->size(1) : 1),
      .page_size = cache.size(1),
      .is_paged = block_table.has_value(),
      .is_ragged = is_ragged,
      .has_bytes = cache.scalar_type() == ScalarType::Byte,
      .has_rope = q.size(q.dim() - 1) > v_dim,
      .has_packed_rows = plan::has_packed_rows(queries.s_q, queries.H, queries.stride_qj, queries.stride_qh),
      .batch_invariant = batch_invariant};
  plan::MlaDecodeSm90Plan plan = plan::plan_mla_decode_sm90(problem, num_multiprocessors(kOp, device));
  if (schedule) plan.num_parts = static_cast<int>(schedule->size(0) - plan::mla_schedule_rows(B, 0));
  const int64_t tile_rows = is_ragged ? plan.items : 0;
  const Tensor tiles = empty_cuda(tile_rows * 5, ScalarType::Int, device);  // and lengths
  auto* tiles_ptr = static_cast<int32_t*>(tiles.mutable_data_ptr());
  cuda::MlaDecodeArgs args = {
      .dtype = q.scalar_type() == ScalarType::BFloat16 ? cuda::MlaFloat::kBFloat16 : cuda::MlaFloat::kFloat16,
      .q = q.const_data_ptr(),
      .stride_qb = queries.stride_qb,
      .stride_qj = queries.stride_qj,
      .stride_qh = queries.stride_qh,
      .has_bytes = problem.has_bytes,
      .cache = cache.const_data_ptr(),
      .num_pages = cache.size(0),
      .page_size = cache.size(1),
      .stride_page = cache.stride(0),
      .stride_slot = cache.stride(1),
      .block_table = int32s(block_table),
      .stride_tb = block_table ? block_table->stride(0) : 0,
      .seqlens = int32s(seqlens),
      .cu_seqlens_q = int32s(cu_seqlens_q),
      .schedule = int32s(schedule),
      .stride_schedule = schedule ? schedule->stride(0) : plan::kMlaScheduleColumns,
      .sm_scale = static_cast<float>(sm_scale),
      .B = static_cast<int>(B),
      .s_q = static_cast<int>(queries.s_q),
      .H = static_cast<int>(queries.H),
      .D = static_cast<int>(q.size(q.dim() - 1)),
      .v_dim = static_cast<int>(v_dim),
      .causal = causal,
      .batch_invariant = batch_invariant,
      .items = static_cast<int>(plan.items),
      .item_rows = static_cast<int>(plan.item_rows),
      .tiles = is_ragged ? tiles_ptr : nullptr,
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .pieces = plan::mla_decode_sm90_pieces(problem, plan),
      .piece_out = nullptr,
      .piece_lse = nullptr,
  };
  std::string error = cuda::why_not_mla_decode(args);
  if (!error.empty()) throw std::invalid_argument(std::string(kOp) + ": " + error);
  if (!schedule) schedule = make_schedule(args, plan, tiles_ptr, tiles_ptr + tile_rows * 4, device, stream);
  const int64_t piece_rows = args.pieces * args.item_rows;
  const Tensor pieces = empty_cuda(piece_rows * (v_dim + 1), ScalarType::Float, device);
  args.piece_out = static_cast<float*>(pieces.mutable_data_ptr());
  args.piece_lse = args.piece_out + piece_rows * v_dim;
  error = cuda::launch_mla_decode(args, plan, stream);
  if (!error.empty()) throw std::runtime_error(std::string(kOp) + ": " + error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) { m.impl("mla_decode_out", TORCH_BOX(&mla_decode_out)); }

}  // namespace moela
