// How the torch side runs attention over a latent cache on the CPU: what mla_decode and mla_sparse share.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {

// q [..., H, latent + rope], whose queries of a request follow each other in dimension -3, and what is made
// of it, without a sink.
inline cpu::MlaProblem mla_problem(const Tensor& q, const Tensor& cache, double sm_scale, int64_t v_dim,
                                   Tensor& out, Tensor& lse) {
  const int64_t rope = q.size(q.dim() - 1) - v_dim;
  return {.q = q.const_data_ptr(),
          .q_dtype = cpu_dtype(q.scalar_type()),
          .stride_qh = q.stride(q.dim() - 2),
          .stride_qt = q.dim() < 3 ? 0 : q.stride(q.dim() - 3),
          .cache = mla_cache_of(cache, v_dim, rope, const_cast<void*>(cache.const_data_ptr())),
          .attn_sink = nullptr,
          .sm_scale = static_cast<float>(sm_scale),
          .H = q.size(q.dim() - 2),
          .out = out.mutable_data_ptr(),
          .lse = static_cast<float*>(lse.mutable_data_ptr())};
}

// Into how many groups of `rows` rows or less the heads of queries fall.
inline int64_t mla_groups_of(int64_t H, int64_t queries, int64_t rows) {
  const int64_t padded = cpu::mla_padded_heads(H),
                at_once = padded < rows ? rows / std::max<int64_t>(padded, 1) : 1;
  return (padded + rows - 1) / rows * ((queries + at_once - 1) / at_once);
}

// Parts of about as many keys as one has, of those that have some: a few of the last keys are no work for a
// thread.
inline int64_t mla_whole_parts_of(int64_t keys) {
  return keys == 0 ? 0 : std::max<int64_t>((keys + cpu::kMlaSplit / 2) / cpu::kMlaSplit, 1);
}

// How many rows a part has at most: as many as the kernel takes, for which keys are read once, or as few as
// leave a whole part for every thread. num_parts(rows): of the call.
template <class NumParts>
int64_t mla_rows_of_part(const NumParts& num_parts) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t rows = cpu::kernels().mla_attend.rows;
  while (rows > cpu::kMlaBlock && num_parts(rows) < threads) rows /= 2;
  return rows;
}

// Takes the queries of one request after the other, cuts them and their heads into groups and their keys
// into parts, and runs what it has where the sums of parts would become too many.
class MlaWave {
 public:
  // rows: of a part at most; mla_rows_of_part. Bits do not depend on it.
  MlaWave(const cpu::MlaProblem& problem, int64_t rows) : problem_(problem), rows_(rows) {}

  // `count` queries, the last of which sees all `keys`, and each `hidden` fewer than the one after it. index:
  // of the first one in out; q_offset: of its first head in q. What the keys point to has to live until the
  // next run().
  void add(int64_t index, int64_t q_offset, const cpu::MlaKeys& keys, int64_t count = 1, int64_t hidden = 0) {
    for (int64_t h = 0; h < problem_.H; h += rows_)
      for (int64_t first = 0; first < count;) {
        cpu::MlaQueries q = {.index = index + first,
                             .q_offset = q_offset + h * problem_.stride_qh + first * problem_.stride_qt,
                             .count = 1,
                             .head = h,
                             .num_heads = std::min(problem_.H - h, rows_),
                             .keys = keys,
                             .hidden = hidden,
                             .packed = nullptr,
                             .parts = nullptr};
        q.count = std::min(count - first, std::max<int64_t>(rows_ / q.padded_heads(), 1));
        first += q.count;
        q.keys.count = std::max<int64_t>(keys.count - (count - first) * hidden, 0);
        add(q);
      }
  }

  void run() {
    if (queries_.empty()) return;
    const Scratch<float> memory(floats_);
    float* next = memory.get();
    std::vector<std::pair<const cpu::MlaQueries*, int64_t>> parts;
    for (cpu::MlaQueries& q : queries_) {
      q.packed = next;
      q.parts = q.packed + cpu::mla_packed_floats(problem_, q);
      next = q.parts + q.num_parts() * cpu::mla_part_floats(problem_, q);
    }
    for (const cpu::MlaQueries& q : queries_)
      for (int64_t part = 0; part < q.num_parts(); ++part) parts.emplace_back(&q, part);
    const auto count = static_cast<int64_t>(queries_.size());
    const auto& kernels = cpu::kernels().mla_attend;
    const double row = static_cast<double>(queries_[0].num_rows() * problem_.D());
    parallel(count, row, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.pack(problem_, queries_[i]);
    });
    parallel(static_cast<int64_t>(parts.size()), 0.02 * row * cpu::kMlaSplit,
             [&](int64_t begin, int64_t end) {
               float* scratch = scratch_of_thread(kernels.scratch_floats(problem_));
               for (int64_t i = begin; i < end; ++i)
                 kernels.attend(problem_, *parts[i].first, parts[i].second, scratch);
             });
    std::vector<std::pair<const cpu::MlaQueries*, int64_t>> blocks;
    for (const cpu::MlaQueries& q : queries_)
      for (int64_t r = 0; r < q.num_rows(); r += cpu::kMlaBlock) blocks.emplace_back(&q, r);
    // Eight sums of a part a nanosecond, roughly.
    const double block = static_cast<double>(parts.size() * cpu::kMlaBlock * problem_.padded_latent()) /
                         (8.0 * static_cast<double>(count));
    parallel(static_cast<int64_t>(blocks.size()), block, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.merge(problem_, *blocks[i].first, blocks[i].second);
    });
    queries_.clear();
    floats_ = 0;
  }

 private:
  static constexpr int64_t kMostFloats = int64_t{16} << 20;  // 64 MB

  void add(const cpu::MlaQueries& queries) {
    const int64_t floats = cpu::mla_packed_floats(problem_, queries) +
                           queries.num_parts() * cpu::mla_part_floats(problem_, queries);
    if (floats_ + floats > kMostFloats) run();
    queries_.push_back(queries);
    floats_ += floats;
  }

  const cpu::MlaProblem& problem_;
  const int64_t rows_;
  std::vector<cpu::MlaQueries> queries_;
  int64_t floats_ = 0;
};

}  // namespace moela
