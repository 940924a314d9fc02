// Torch side of the CPU mla_decode: check, cut into parts, launch.
#include <cmath>
#include <optional>
#include <tuple>

#include "common/expert_rows.h"
#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_decode";
constexpr int64_t kWaveFloats = int64_t{16} << 20;  // sums of parts that are kept at a time: 64 MB

void check_lengths(const Tensor& q, const Tensor& cache, const std::optional<Tensor>& block_table,
                   const Tensor& seqlens) {
  check_int32s(kOp, "seqlens", seqlens, q.size(0), "q");
  const int64_t page_size = cache.size(1);
  const int64_t capacity = page_size * (block_table ? block_table->size(1) : 1);
  for (int64_t b = 0; b < q.size(0); ++b) {
    const int64_t tokens = int32s(seqlens)[b];
    if (tokens < 0 || tokens > capacity)
      fail(kOp, "seqlens", "lengths within [0, " + std::to_string(capacity) + "]",
           std::to_string(tokens) + " at request " + std::to_string(b));
    if (!block_table || tokens == 0) continue;
    const int32_t* pages = int32s(*block_table) + b * block_table->stride(0);
    for (int64_t block = 0; block < (tokens + page_size - 1) / page_size; ++block)
      if (pages[block] < 0 || pages[block] >= cache.size(0))
        fail(kOp, "block_table", "pages within [0, " + std::to_string(cache.size(0) - 1) + "]",
             std::to_string(pages[block]) + " at request " + std::to_string(b) + ", block " +
                 std::to_string(block));
  }
}

void check(const Tensor& q, const Tensor& cache, const std::optional<Tensor>& block_table,
           const Tensor& seqlens, double sm_scale, int64_t v_dim) {
  using enum ScalarType;
  check_dim(kOp, "q", q, 4);
  check_dtype(kOp, "q", q.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "q", q);
  const int64_t B = q.size(0), D = q.size(3);
  if (v_dim < 1 || v_dim > D) fail(kOp, "v_dim", "a number within [1, " + std::to_string(D) + "]", v_dim);
  if (!std::isfinite(sm_scale)) fail(kOp, "sm_scale", "a finite number", sm_scale);
  check_dim(kOp, "cache", cache, 3);
  check_mla_cache_dtype(kOp, cache);
  if (is_of_bytes(cache) && v_dim % cpu::kMlaGroup != 0)
    fail(kOp, "v_dim", "a multiple of 128 because cache is uint8", v_dim);
  check_mla_rows(kOp, cache, v_dim, D - v_dim);
  check_cpu(kOp, "cache", cache, "q");
  if (block_table) {
    check_dim(kOp, "block_table", *block_table, 2);
    check_dtype(kOp, "block_table", block_table->scalar_type(), {Int});
    check_same(kOp, "block_table", "B", block_table->size(0), B, "q");
    check_last_dim_contiguous(kOp, "block_table", *block_table);
    check_cpu(kOp, "block_table", *block_table, "q");
  } else {
    check_same(kOp, "cache", "B", cache.size(0), B, "q");
  }
  check_lengths(q, cache, block_table, seqlens);
}

// One after the other: the heads of a query in groups, and what a wave has of them.
class Wave {
 public:
  explicit Wave(const cpu::MlaDecodeProblem& problem) : problem_(problem) {}
  void add(cpu::MlaQuery query) {
    const int64_t floats =
        cpu::mla_packed_floats(problem_, query) + query.num_parts() * cpu::mla_part_floats(problem_, query);
    if (floats_ + floats > kWaveFloats) run();
    queries_.push_back(query);
    floats_ += floats;
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
    const auto& kernels = cpu::kernels().mla_decode;
    const double row = static_cast<double>(queries_[0].num_heads * problem_.D());
    parallel(count, row, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels.pack(problem_, queries_[i]);
    });
    parallel(static_cast<int64_t>(parts.size()), 0.02 * row * cpu::kMlaSplit,
             [&](int64_t begin, int64_t end) {
               float* scratch = scratch_of_thread(cpu::mla_scratch_floats(problem_));
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
  // Kept for later calls: a quarter of a megabyte.
  static float* scratch_of_thread(int64_t floats) {
    static thread_local Scratch<float> scratch(0);
    static thread_local int64_t size = 0;
    if (size < floats) {
      scratch = Scratch<float>(floats);
      size = floats;
    }
    return scratch.get();
  }

  const cpu::MlaDecodeProblem& problem_;
  std::vector<cpu::MlaQuery> queries_;
  int64_t floats_ = 0;
};

void launch(const Tensor& q, const Tensor& cache, const std::optional<Tensor>& block_table,
            const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal, Tensor& out, Tensor& lse) {
  const int64_t s_q = q.size(1), H = q.size(2);
  const cpu::MlaDecodeProblem p = {
      .q = q.const_data_ptr(),
      .q_dtype = cpu_dtype(q.scalar_type()),
      .stride_qb = q.stride(0),
      .stride_qj = q.stride(1),
      .stride_qh = q.stride(2),
      .cache = mla_cache_of(cache, v_dim, q.size(3) - v_dim, const_cast<void*>(cache.const_data_ptr())),
      .block_table = block_table ? int32s(*block_table) : nullptr,
      .stride_tb = block_table ? block_table->stride(0) : 0,
      .sm_scale = static_cast<float>(sm_scale),
      .s_q = s_q,
      .H = H,
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
  };
  Wave wave(p);
  for (int64_t b = 0; b < q.size(0); ++b)
    for (int64_t j = 0; j < s_q; ++j)
      for (int64_t h = 0; h < H; h += cpu::kMlaHeads) {
        const int64_t seen = int32s(seqlens)[b] - (causal ? s_q - 1 - j : 0);
        wave.add({.request = b,
                  .query = j,
                  .head = h,
                  .num_heads = H - h < cpu::kMlaHeads ? H - h : cpu::kMlaHeads,
                  .num_keys = seen < 0 ? 0 : seen,
                  .packed = nullptr,
                  .parts = nullptr});
      }
  wave.run();
}

std::vector<int64_t> out_shape(const Tensor& q, int64_t v_dim) {
  return {q.size(0), q.size(1), q.size(2), v_dim};
}

std::tuple<Tensor, Tensor> mla_decode(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                                      const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal) {
  check(q, cache, block_table, seqlens, sm_scale, v_dim);
  Tensor out = empty_cpu(out_shape(q, v_dim), q.scalar_type());
  Tensor lse = empty_cpu({q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
  launch(q, cache, block_table, seqlens, sm_scale, v_dim, causal, out, lse);
  return {out, lse};
}

void mla_decode_out(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                    const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal, Tensor out,
                    Tensor lse) {
  check(q, cache, block_table, seqlens, sm_scale, v_dim);
  check_out("mla_decode_out", "out", out, q.scalar_type(), out_shape(q, v_dim));
  check_out("mla_decode_out", "lse", lse, ScalarType::Float, {q.size(0), q.size(1), q.size(2)});
  launch(q, cache, block_table, seqlens, sm_scale, v_dim, causal, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_decode", TORCH_BOX(&mla_decode));
  m.impl("mla_decode_out", TORCH_BOX(&mla_decode_out));
}

}  // namespace moela
