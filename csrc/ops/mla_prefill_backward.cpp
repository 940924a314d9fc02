// Torch side of the CPU mla_prefill_backward: check, launch.
#include "cpu/mla_prefill_backward.h"

#include <optional>
#include <tuple>

#include "common/mla_prefill.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_prefill_backward";

// What an argument is called, and what it is.
struct Args {
  const Tensor& dout;
  const std::optional<Tensor>& dlse;
  const Tensor &q, &k, &v, &fwd_out, &lse, &cu_seqlens_q, &cu_seqlens_k;
  double sm_scale;
  bool causal;
};

void check(const Args& a) {
  check_dim(kOp, "dout", a.dout, 3);
  check_prefill(kOp, a.q, a.k, a.v, a.cu_seqlens_q, a.cu_seqlens_k, a.sm_scale, "dout");
  const auto check_result = [&](const char* arg, const Tensor& t) {
    check_same_dtype(kOp, arg, t.scalar_type(), a.q.scalar_type(), "q");
    check_shape(kOp, arg, t, {a.q.size(0), a.q.size(1), a.v.size(2)});
    check_last_dim_contiguous(kOp, arg, t);
    check_cpu(kOp, arg, t, "dout");
  };
  check_result("dout", a.dout);
  check_result("fwd_out", a.fwd_out);
  const auto check_lse = [&](const char* arg, const Tensor& t) {
    check_dtype(kOp, arg, t.scalar_type(), {ScalarType::Float});
    check_shape(kOp, arg, t, {a.q.size(0), a.q.size(1)});
    check_cpu(kOp, arg, t, "dout");
  };
  check_lse("lse", a.lse);
  if (a.dlse) check_lse("dlse", *a.dlse);
}

cpu::HeadValues head_values(const Tensor& t) {
  return {static_cast<const float*>(t.const_data_ptr()), t.stride(0), t.stride(1)};
}

void launch(const Args& a, Tensor& dq, Tensor& dk, Tensor& dv) {
  const cpu::MlaPrefillBackwardParams p = {
      .problem = prefill_problem(a.q, a.k, a.v, a.sm_scale, a.causal),
      .dout = head_rows(a.dout),
      .fwd_out = head_rows(a.fwd_out),
      .lse = head_values(a.lse),
      .dlse = a.dlse ? head_values(*a.dlse) : cpu::HeadValues{},
      .dq = dq.mutable_data_ptr(),
      .dk = dk.mutable_data_ptr(),
      .dv = dv.mutable_data_ptr(),
  };
  const std::vector<cpu::PrefillSequence> sequences = prefill_sequences(a.cu_seqlens_q, a.cu_seqlens_k);
  const int64_t H = p.problem.H, count = static_cast<int64_t>(sequences.size()) * H;
  double pairs = 0;
  int64_t most_queries = 0, most_keys = 0;
  for (const cpu::PrefillSequence& s : sequences) {
    pairs += 1e3 + static_cast<double>(s.num_queries * s.num_keys);
    most_queries = s.num_queries > most_queries ? s.num_queries : most_queries;
    most_keys = s.num_keys > most_keys ? s.num_keys : most_keys;
  }
  const double columns = static_cast<double>(p.problem.D + p.problem.Dv);
  parallel(count, 0.03 * columns * pairs / static_cast<double>(sequences.size()),
           [&](int64_t begin, int64_t end) {
             const cpu::MlaPrefillBackwardKernel& kernel = cpu::kernels().mla_prefill_backward;
             const Scratch<float> scratch(kernel.scratch_floats(p.problem, most_queries, most_keys));
             for (int64_t i = begin; i < end; ++i) kernel.run(p, sequences[i / H], i % H, scratch.get());
           });
}

std::tuple<Tensor, Tensor, Tensor> mla_prefill_backward(const Tensor& dout, std::optional<Tensor> dlse,
                                                        const Tensor& q, const Tensor& k, const Tensor& v,
                                                        const Tensor& fwd_out, const Tensor& lse,
                                                        const Tensor& cu_seqlens_q,
                                                        const Tensor& cu_seqlens_k, double sm_scale,
                                                        bool causal) {
  const Args a = {dout, dlse, q, k, v, fwd_out, lse, cu_seqlens_q, cu_seqlens_k, sm_scale, causal};
  check(a);
  Tensor dq = empty_cpu(sizes_of(q), q.scalar_type());
  Tensor dk = empty_cpu(sizes_of(k), q.scalar_type());
  Tensor dv = empty_cpu(sizes_of(v), q.scalar_type());
  launch(a, dq, dk, dv);
  return {dq, dk, dv};
}

void mla_prefill_backward_out(const Tensor& dout, std::optional<Tensor> dlse, const Tensor& q,
                              const Tensor& k, const Tensor& v, const Tensor& fwd_out, const Tensor& lse,
                              const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, double sm_scale,
                              bool causal, Tensor dq, Tensor dk, Tensor dv) {
  const Args a = {dout, dlse, q, k, v, fwd_out, lse, cu_seqlens_q, cu_seqlens_k, sm_scale, causal};
  check(a);
  check_out("mla_prefill_backward_out", "dq", dq, q.scalar_type(), sizes_of(q));
  check_out("mla_prefill_backward_out", "dk", dk, q.scalar_type(), sizes_of(k));
  check_out("mla_prefill_backward_out", "dv", dv, q.scalar_type(), sizes_of(v));
  launch(a, dq, dk, dv);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_prefill_backward", TORCH_BOX(&mla_prefill_backward));
  m.impl("mla_prefill_backward_out", TORCH_BOX(&mla_prefill_backward_out));
}

}  // namespace moela
