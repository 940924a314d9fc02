// How the torch side runs attention over a latent cache on the CPU: what mla_decode and mla_sparse share.
#pragma once

#include <utility>
#include <vector>

#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {

// q [..., H, latent + rope] and what is made of it, without a sink.
inline cpu::MlaProblem mla_problem(const Tensor& q, int64_t stride_qh, const Tensor& cache, double sm_scale,
                                   int64_t v_dim, Tensor& out, Tensor& lse) {
  const int64_t rope = q.size(q.dim() - 1) - v_dim;
  return {.q = q.const_data_ptr(),
          .q_dtype = cpu_dtype(q.scalar_type()),
          .stride_qh = stride_qh,
          .cache = mla_cache_of(cache, v_dim, rope, const_cast<void*>(cache.const_data_ptr())),
          .attn_sink = nullptr,
          .sm_scale = static_cast<float>(sm_scale),
          .H = q.size(q.dim() - 2),
          .out = out.mutable_data_ptr(),
          .lse = static_cast<float*>(lse.mutable_data_ptr())};
}

// Takes one query after the other, cuts its heads into groups and its keys into parts, and runs what it has
// where the sums of parts would become too many.
class MlaWave {
 public:
  explicit MlaWave(const cpu::MlaProblem& problem) : problem_(problem) {}

  // `index`: of the query in out; q_offset: of its first head in q. What the keys point to has to live until
  // the next run().
  void add(int64_t index, int64_t q_offset, cpu::MlaKeys keys) {
    const int64_t heads = cpu::kernels().mla_attend.heads;
    for (int64_t h = 0; h < problem_.H; h += heads)
      add({.index = index,
           .q_offset = q_offset + h * problem_.stride_qh,
           .head = h,
           .num_heads = problem_.H - h < heads ? problem_.H - h : heads,
           .keys = keys,
           .packed = nullptr,
           .parts = nullptr});
  }

  void run() {
    if (queries_.empty()) return;
    const Scratch<float> memory(floats_);
    float* next = memory.get();
    std::vector<std::pair<const cpu::MlaQuery*, int64_t>> parts;
    for (cpu::MlaQuery& q : queries_) {
      q.packed = next;
      q.parts = q.packed + cpu::mla_packed_floats(problem_, q);
      next = q.parts + q.num_parts() * cpu::mla_part_floats(problem_, q);
    }
    for (const cpu::MlaQuery& q : queries_)
      for (int64_t part = 0; part < q.num_parts(); ++part) parts.emplace_back(&q, part);
    const auto count = static_cast<int64_t>(queries_.size());
    const auto& kernels = cpu::kernels().mla_attend;
    const double row = static_cast<double>(queries_[0].num_heads * problem_.D());
    parallel(count, row, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.pack(problem_, queries_[i]);
    });
    parallel(static_cast<int64_t>(parts.size()), 0.02 * row * cpu::kMlaSplit,
             [&](int64_t begin, int64_t end) {
               float* scratch = scratch_of_thread(kernels.scratch_floats(problem_));
               for (int64_t i = begin; i < end; ++i)
                 kernels.attend(problem_, *parts[i].first, parts[i].second, scratch);
             });
    parallel(count, row, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.merge(problem_, queries_[i]);
    });
    queries_.clear();
    floats_ = 0;
  }

 private:
  static constexpr int64_t kMostFloats = int64_t{16} << 20;  // 64 MB

  void add(const cpu::MlaQuery& query) {
    const int64_t floats =
        cpu::mla_packed_floats(problem_, query) + query.num_parts() * cpu::mla_part_floats(problem_, query);
    if (floats_ + floats > kMostFloats) run();
    queries_.push_back(query);
    floats_ += floats;
  }

  const cpu::MlaProblem& problem_;
  std::vector<cpu::MlaQuery> queries_;
  int64_t floats_ = 0;
};

}  // namespace moela
