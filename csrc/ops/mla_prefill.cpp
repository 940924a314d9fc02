// Torch side of the CPU mla_prefill: check, launch.
#include "common/mla_prefill.h"

#include <tuple>

#include "common/mla_prefill_wave.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_prefill";

void launch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
            const Tensor& cu_seqlens_k, double sm_scale, bool causal, Tensor& out, Tensor& lse) {
  const cpu::MlaPrefillParams p = {.problem = prefill_problem(q, k, v, sm_scale, causal),
                                   .out = out.mutable_data_ptr(),
                                   .lse = static_cast<float*>(lse.mutable_data_ptr())};
  MlaPrefillWave wave(p);
  for (const cpu::PrefillSequence& sequence : prefill_sequences(cu_seqlens_q, cu_seqlens_k))
    for (int64_t head = 0; head < p.problem.H; ++head) wave.add(sequence, head);
  wave.run();
}

std::vector<int64_t> out_shape(const Tensor& q, const Tensor& v) { return {q.size(0), q.size(1), v.size(2)}; }

std::tuple<Tensor, Tensor> mla_prefill(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                       double sm_scale, bool causal) {
  check_prefill(kOp, q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale, "q");
  Tensor out = empty_cpu(out_shape(q, v), q.scalar_type());
  Tensor lse = empty_cpu({q.size(0), q.size(1)}, ScalarType::Float);
  launch(q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale, causal, out, lse);
  return {out, lse};
}

void mla_prefill_out(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
                     const Tensor& cu_seqlens_k, double sm_scale, bool causal, Tensor out, Tensor lse) {
  check_prefill(kOp, q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale, "q");
  check_out("mla_prefill_out", "out", out, q.scalar_type(), out_shape(q, v));
  check_out("mla_prefill_out", "lse", lse, ScalarType::Float, {q.size(0), q.size(1)});
  launch(q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale, causal, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_prefill", TORCH_BOX(&mla_prefill));
  m.impl("mla_prefill_out", TORCH_BOX(&mla_prefill_out));
}

}  // namespace moela
