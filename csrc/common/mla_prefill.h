// What the torch sides of mla_prefill and of its gradient share: checks, in the words of
// python/moela/ops/_mla_prefill.py, and the problem that kernels take.
#pragma once

#include <cmath>

#include "common/cu_seqlens.h"
#include "cpu/mla_prefill.h"

namespace moela {

inline void check_prefill_rows(const char* op, const char* arg, const Tensor& t, const Tensor& q,
                               const char* owner) {
  check_dim(op, arg, t, 3);
  check_same_dtype(op, arg, t.scalar_type(), q.scalar_type(), "q");
  check_same(op, arg, "H", t.size(1), q.size(1), "q");
  check_last_dim_contiguous(op, arg, t);
  check_cpu(op, arg, t, owner);
}

inline void check_prefill(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                          const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, double sm_scale,
                          const char* owner) {
  using enum ScalarType;
  check_dim(op, "q", q, 3);
  check_dtype(op, "q", q.scalar_type(), {BFloat16, Half, Float});
  if (q.size(2) == 0) fail(op, "q", "at least one column", 0);
  check_prefill_rows(op, "q", q, q, owner);
  check_prefill_rows(op, "k", k, q, owner);
  check_prefill_rows(op, "v", v, q, owner);
  check_same(op, "k", "D", k.size(2), q.size(2), "q");
  check_same(op, "v", "Tk", v.size(0), k.size(0), "k");
  if (v.size(2) == 0) fail(op, "v", "at least one column", 0);
  check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, cu_seqlens_q, q.size(0), owner);
  check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, cu_seqlens_q, k.size(0), owner);
  if (!std::isfinite(sm_scale)) fail(op, "sm_scale", "a finite number", sm_scale);
}

inline cpu::HeadRows head_rows(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1)}; }

inline cpu::PrefillProblem prefill_problem(const Tensor& q, const Tensor& k, const Tensor& v, double sm_scale,
                                           bool causal) {
  return {.q = head_rows(q),
          .k = head_rows(k),
          .v = head_rows(v),
          .dtype = cpu_dtype(q.scalar_type()),
          .H = q.size(1),
          .D = q.size(2),
          .Dv = v.size(2),
          .sm_scale = static_cast<float>(sm_scale),
          .causal = causal};
}

inline std::vector<cpu::PrefillSequence> prefill_sequences(const Tensor& cu_seqlens_q,
                                                           const Tensor& cu_seqlens_k) {
  const int32_t *of_q = int32s(cu_seqlens_q), *of_k = int32s(cu_seqlens_k);
  std::vector<cpu::PrefillSequence> sequences;
  for (int64_t b = 0; b + 1 < cu_seqlens_q.size(0); ++b)
    sequences.push_back({.query = of_q[b],
                         .num_queries = of_q[b + 1] - of_q[b],
                         .key = of_k[b],
                         .num_keys = of_k[b + 1] - of_k[b]});
  return sequences;
}

}  // namespace moela
