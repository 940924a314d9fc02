// Torch side of the CPU mla_decode: check, cut into parts, launch.
#include <cmath>
#include <optional>
#include <tuple>

#include "common/cu_seqlens.h"
#include "common/mla_batch.h"
#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_decode";
constexpr int64_t kWaveFloats = int64_t{16} << 20;  // sums of parts that are kept at a time: 64 MB

// The arguments, but for what is written.
struct Arguments {
  const Tensor& q;
  const Tensor& cache;
  const std::optional<Tensor>& block_table;
  const Tensor& seqlens;
  double sm_scale;
  int64_t v_dim;
  bool causal;
  const std::optional<Tensor>& cu_seqlens_q;
  const std::optional<Tensor>& schedule;
  bool batch_invariant;

  int64_t D() const { return q.size(q.dim() - 1); }
  int64_t H() const { return q.size(q.dim() - 2); }
  int64_t B() const { return cu_seqlens_q ? cu_seqlens_q->size(0) - 1 : q.size(0); }
  std::vector<int64_t> lse_shape() const {
    std::vector<int64_t> shape = sizes_of(q);
    shape.pop_back();
    return shape;
  }
  std::vector<int64_t> out_shape() const {
    std::vector<int64_t> shape = lse_shape();
    shape.push_back(v_dim);
    return shape;
  }
};

void check(const Arguments& a) {
  using enum ScalarType;
  check_dim(kOp, "q", a.q, a.cu_seqlens_q ? 3 : 4);
  check_dtype(kOp, "q", a.q.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "q", a.q);
  if (a.cu_seqlens_q)
    check_cu_seqlens(kOp, "cu_seqlens_q", *a.cu_seqlens_q, *a.cu_seqlens_q, a.q.size(0), "q");
  const char* owner = a.cu_seqlens_q ? "cu_seqlens_q" : "q";
  if (a.v_dim < 1 || a.v_dim > a.D())
    fail(kOp, "v_dim", "a number within [1, " + std::to_string(a.D()) + "]", a.v_dim);
  if (!std::isfinite(a.sm_scale)) fail(kOp, "sm_scale", "a finite number", a.sm_scale);
  check_dim(kOp, "cache", a.cache, 3);
  check_mla_cache_dtype(kOp, a.cache);
  if (is_of_bytes(a.cache) && a.v_dim % cpu::kMlaGroup != 0)
    fail(kOp, "v_dim", "a multiple of 128 because cache is uint8", a.v_dim);
  check_mla_rows(kOp, a.cache, a.v_dim, a.D() - a.v_dim);
  check_cpu(kOp, "cache", a.cache, "q");
  if (a.block_table) {
    check_dim(kOp, "block_table", *a.block_table, 2);
    check_dtype(kOp, "block_table", a.block_table->scalar_type(), {Int});
    check_same(kOp, "block_table", "B", a.block_table->size(0), a.B(), owner);
    check_last_dim_contiguous(kOp, "block_table", *a.block_table);
    check_cpu(kOp, "block_table", *a.block_table, "q");
  } else {
    check_same(kOp, "cache", "B", a.cache.size(0), a.B(), owner);
  }
  check_seqlens(kOp, a.seqlens, a.B(), a.cache, a.block_table);
  if (!a.schedule) return;
  if (a.cu_seqlens_q) fail(kOp, "schedule", "None because cu_seqlens_q is a tensor", "a tensor");
  check_schedule(kOp, *a.schedule, a.seqlens, a.q.size(1) * a.H(), a.batch_invariant);
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

// A schedule is not needed: keys are split at fixed places, and threads take parts as they get done.
void launch(const Arguments& a, Tensor& out, Tensor& lse) {
  const Tensor& q = a.q;
  const bool is_ragged = a.cu_seqlens_q.has_value();
  const int64_t H = a.H(), token_dim = q.dim() - 3;
  const int32_t* bounds = is_ragged ? int32s(*a.cu_seqlens_q) : nullptr;
  const cpu::MlaDecodeProblem p = {
      .q = q.const_data_ptr(),
      .q_dtype = cpu_dtype(q.scalar_type()),
      // The tokens of a ragged batch are counted through all requests.
      .stride_qb = is_ragged ? 0 : q.stride(0),
      .stride_qj = q.stride(token_dim),
      .stride_qh = q.stride(token_dim + 1),
      .cache = mla_cache_of(a.cache, a.v_dim, a.D() - a.v_dim, const_cast<void*>(a.cache.const_data_ptr())),
      .block_table = a.block_table ? int32s(*a.block_table) : nullptr,
      .stride_tb = a.block_table ? a.block_table->stride(0) : 0,
      .sm_scale = static_cast<float>(a.sm_scale),
      .s_q = is_ragged ? 0 : q.size(1),
      .H = H,
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
  };
  Wave wave(p);
  for (int64_t b = 0; b < a.B(); ++b) {
    const int64_t first = is_ragged ? bounds[b] : 0, end = is_ragged ? bounds[b + 1] : p.s_q;
    for (int64_t j = first; j < end; ++j)
      for (int64_t h = 0; h < H; h += cpu::kMlaHeads) {
        const int64_t seen = int32s(a.seqlens)[b] - (a.causal ? end - 1 - j : 0);
        wave.add({.request = b,
                  .query = j,
                  .head = h,
                  .num_heads = H - h < cpu::kMlaHeads ? H - h : cpu::kMlaHeads,
                  .num_keys = seen < 0 ? 0 : seen,
                  .packed = nullptr,
                  .parts = nullptr});
      }
  }
  wave.run();
}

std::tuple<Tensor, Tensor> mla_decode(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                                      const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal,
                                      std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> schedule,
                                      bool batch_invariant) {
  const Arguments a = {q,     cache,  block_table,  seqlens,  sm_scale,
                       v_dim, causal, cu_seqlens_q, schedule, batch_invariant};
  check(a);
  Tensor out = empty_cpu(a.out_shape(), q.scalar_type());
  Tensor lse = empty_cpu(a.lse_shape(), ScalarType::Float);
  launch(a, out, lse);
  return {out, lse};
}

void mla_decode_out(const Tensor& q, const Tensor& cache, std::optional<Tensor> block_table,
                    const Tensor& seqlens, double sm_scale, int64_t v_dim, bool causal,
                    std::optional<Tensor> cu_seqlens_q, std::optional<Tensor> schedule, bool batch_invariant,
                    Tensor out, Tensor lse) {
  const Arguments a = {q,     cache,  block_table,  seqlens,  sm_scale,
                       v_dim, causal, cu_seqlens_q, schedule, batch_invariant};
  check(a);
  check_out("mla_decode_out", "out", out, q.scalar_type(), a.out_shape());
  check_out("mla_decode_out", "lse", lse, ScalarType::Float, a.lse_shape());
  launch(a, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_decode", TORCH_BOX(&mla_decode));
  m.impl("mla_decode_out", TORCH_BOX(&mla_decode_out));
}

}  // namespace moela
