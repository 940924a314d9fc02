// Runs fused_experts: tokens in chunks, each chunk's rows sorted by expert and computed wave by wave, each
// wave in four parallel passes: pack x, gate and up, pack h, down.
#pragma once

#include <cstring>
#include <vector>

#include "cpu/fused_experts.h"
#include "cpu/gemm_driver.h"
#include "plan/fused_experts.h"

namespace moela::cpu {

struct FusedExpertsParams {
  const void* x;  // [num_tokens, H] of dtype, rows ldx elements apart
  void* out;      // [num_tokens, H] of dtype, contiguous
  Dtype dtype;
  int64_t ldx;
  int64_t num_tokens;
  int64_t topk;
  int64_t num_experts;
  int64_t H;
  int64_t I;
  Swiglu activation;
  ActivationCast cast;
};

// The rows of every expert: the tokens that picked it, ascending, each once with the sum of its weights.
struct SortedRows {
  std::vector<int32_t> offsets;  // [num_experts + 1]
  std::vector<int32_t> tokens;
  std::vector<float> weights;
};

// id_of(token, k), weight_of(token, k) for `num_tokens` tokens from `first` on; tokens count from there.
template <class IdOf, class WeightOf>
SortedRows sort_rows(int64_t first, int64_t num_tokens, int64_t topk, int64_t num_experts, const IdOf& id_of,
                     const WeightOf& weight_of) {
  // Calls f(expert, token, weight, is_again); tokens ascend, so an id that is twice in a row meets itself.
  std::vector<int32_t> last(num_experts);
  const auto for_each = [&](const auto& f) {
    last.assign(num_experts, -1);
    for (int64_t t = 0; t < num_tokens; ++t)
      for (int64_t k = 0; k < topk; ++k) {
        const int64_t id = id_of(first + t, k);
        if (id < 0 || id >= num_experts) continue;
        f(id, static_cast<int32_t>(t), weight_of(first + t, k), last[id] == t);
        last[id] = static_cast<int32_t>(t);
      }
  };
  SortedRows rows;
  rows.offsets.assign(num_experts + 1, 0);
  for_each([&](int64_t id, int32_t, float, bool is_again) { rows.offsets[id + 1] += !is_again; });
  for (int64_t e = 0; e < num_experts; ++e) rows.offsets[e + 1] += rows.offsets[e];
  rows.tokens.resize(rows.offsets[num_experts]);
  rows.weights.resize(rows.offsets[num_experts]);
  std::vector<int32_t> end(rows.offsets.begin(), rows.offsets.end() - 1);
  for_each([&](int64_t id, int32_t token, float weight, bool is_again) {
    if (is_again) {
      rows.weights[end[id] - 1] += weight;
    } else {
      rows.tokens[end[id]] = token;
      rows.weights[end[id]++] = weight;
    }
  });
  return rows;
}

// The products of the experts with rows. w13_of(e), w2_of(e): problems with the weights of expert e.
struct ExpertProblems {
  std::vector<GemmProblem> gate;
  std::vector<GemmProblem> down;
  std::vector<ExpertRows> rows;
};

// float32, but where pairs of bfloat16 are multiplied what they take (docs/adr/0011).
inline Dtype h_dtype_of(const FusedExpertsParams& p, const plan::GemmShape& shape) {
  const bool is_rounded = shape.has_bf16 && p.dtype == Dtype::kBFloat16 && p.cast == ActivationCast::kNone;
  return is_rounded ? Dtype::kBFloat16 : Dtype::kFloat32;
}

template <class W13Of, class W2Of>
ExpertProblems problems_of(const FusedExpertsParams& p, const plan::GemmShape& shape, const void* x,
                           const SortedRows& sorted, const W13Of& w13_of, const W2Of& w2_of) {
  ExpertProblems problems;
  for (int64_t e = 0; e < p.num_experts; ++e) {
    const int32_t first = sorted.offsets[e], count = sorted.offsets[e + 1] - first;
    if (count == 0) continue;
    GemmProblem gate = w13_of(e), down = w2_of(e);
    gate.a = x;
    gate.a_dtype = p.dtype;
    gate.lda = p.ldx;
    gate.a_rows = sorted.tokens.data() + first;
    gate.M = count;
    gate.N = p.I;
    down.a_dtype = h_dtype_of(p, shape);
    down.lda = p.I;
    gate.a_cast = down.a_cast = p.cast;
    problems.gate.push_back(gate);
    problems.down.push_back(down);
    problems.rows.push_back(
        {.tokens = sorted.tokens.data() + first, .weights = sorted.weights.data() + first});
  }
  return problems;
}

// Memory that is used for every wave.
struct FusedExpertsScratch {
  float* packed;  // [rows_per_wave, the larger of H and I, padded]
  void* h;        // [rows_per_wave, I] of h_dtype
  Dtype h_dtype;
  float* sums;  // [num_tokens, H]
};

// h of the rows of a wave.
template <class Parallel>
void run_gate_up(const GemmKernels& gemm, const FusedExpertsKernels& kernel, const FusedExpertsParams& p,
                 const plan::GroupedGemmPlan& plan, int64_t wave, const std::vector<GemmProblem>& problems,
                 const FusedExpertsScratch& scratch, const Parallel& parallel) {
  const std::vector<GemmChunk> chunks = chunks_of(plan, wave, problems, padded_k(p.H), scratch.packed);
  pack_chunks(gemm, chunks, parallel);
  for_each_item(static_cast<int64_t>(chunks.size()), plan.num_tasks, 2 * task_cost(chunks, gemm.shape.cols),
                parallel, [&](int64_t i, int64_t begin, int64_t end) {
                  const int64_t row = plan.chunks[plan.waves[wave] + i].row_of_wave;
                  void* h = at_element(scratch.h, scratch.h_dtype, row * p.I);
                  kernel.gate_up(chunks[i], p.activation, h, scratch.h_dtype, begin, end);
                });
}

// The second product of a wave: every chunk is a problem of its own, whose rows are in h.
struct DownWave {
  DownWave(const plan::GroupedGemmPlan& plan, int64_t wave, const plan::GemmShape& shape,
           const ExpertProblems& experts, const FusedExpertsScratch& scratch) {
    const int64_t begin = plan.waves[wave], end = plan.waves[wave + 1];
    problems.reserve(end - begin);  // chunks point into it
    for (int64_t i = begin; i < end; ++i) {
      const plan::GemmRowChunk& c = plan.chunks[i];
      problems.push_back(experts.down[c.problem]);
      GemmProblem& problem = problems.back();
      problem.a = at_element(scratch.h, scratch.h_dtype, c.row_of_wave * problem.K);
      problem.M = c.num_rows;
      chunks.push_back({.problem = &problem,
                        .path = plan::path_of(gemm_rows(problem), shape),
                        .m0 = 0,
                        .num_rows = c.num_rows,
                        .a = scratch.packed + c.row_of_wave * padded_k(problem.K)});
      const ExpertRows& all = experts.rows[c.problem];
      rows.push_back({.tokens = all.tokens + c.m0, .weights = all.weights + c.m0});
    }
  }
  std::vector<GemmProblem> problems;
  std::vector<GemmChunk> chunks;
  std::vector<ExpertRows> rows;
};

// The sums of a wave, and in the last one out.
template <class Parallel>
void run_down(const GemmKernels& gemm, const FusedExpertsKernels& kernel, const DownWave& wave,
              FusedExpertsDown down, const Parallel& parallel) {
  pack_chunks(gemm, wave.chunks, parallel);
  down.chunks = wave.chunks.data();
  down.rows = wave.rows.data();
  down.num_chunks = static_cast<int64_t>(wave.chunks.size());
  const int cols = gemm.shape.cols;
  parallel((down.H + cols - 1) / cols, task_cost(wave.chunks, cols) * static_cast<double>(down.num_chunks),
           [&](int64_t begin, int64_t end) { kernel.down(down, begin, end); });
}

// Tokens [first, first + num_tokens), whose rows are `sorted`. w13_of(e), w2_of(e) give problems with the
// weights of expert e; asked for experts with rows only.
template <class W13Of, class W2Of, class Allocate, class Parallel>
void run_tokens(const GemmKernels& gemm, const FusedExpertsKernels& kernel, const FusedExpertsParams& p,
                int64_t first, int64_t num_tokens, const SortedRows& sorted, const W13Of& w13_of,
                const W2Of& w2_of, const Allocate& allocate, const Parallel& parallel) {
  void* out = at_element(p.out, p.dtype, first * p.H);
  if (sorted.tokens.empty()) {
    std::memset(out, 0, num_tokens * p.H * size_of(p.dtype));
    return;
  }
  const void* x = at_element(p.x, p.dtype, first * p.ldx);
  const ExpertProblems experts = problems_of(p, gemm.shape, x, sorted, w13_of, w2_of);
  const plan::GroupedGemmPlan plan = plan_of(gemm, experts.gate, plan::fused_experts_row_bytes(p.H, p.I));
  const auto packed = allocate(plan.rows_per_wave * padded_k(p.H > p.I ? p.H : p.I));
  const auto h = allocate(plan.rows_per_wave * p.I), sums = allocate(num_tokens * p.H);
  const FusedExpertsScratch scratch = {
      .packed = packed.get(), .h = h.get(), .h_dtype = h_dtype_of(p, gemm.shape), .sums = sums.get()};
  for (int64_t wave = 0; wave < plan.num_waves(); ++wave) {
    run_gate_up(gemm, kernel, p, plan, wave, experts.gate, scratch, parallel);
    const FusedExpertsDown down = {.chunks = nullptr,
                                   .rows = nullptr,
                                   .num_chunks = 0,
                                   .sums = scratch.sums,
                                   .out = out,
                                   .out_dtype = p.dtype,
                                   .num_tokens = num_tokens,
                                   .H = p.H,
                                   .is_first = wave == 0,
                                   .is_last = wave + 1 == plan.num_waves()};
    run_down(gemm, kernel, DownWave(plan, wave, gemm.shape, experts, scratch), down, parallel);
  }
}

// Computes out. id_of(token, k) and weight_of(token, k) are the routing, topk each.
template <class IdOf, class WeightOf, class W13Of, class W2Of, class Allocate, class Parallel>
void run_fused_experts(const GemmKernels& gemm, const FusedExpertsKernels& kernel,
                       const FusedExpertsParams& p, const IdOf& id_of, const WeightOf& weight_of,
                       const W13Of& w13_of, const W2Of& w2_of, const Allocate& allocate,
                       const Parallel& parallel) {
  const plan::FusedExpertsPlan plan = plan::plan_fused_experts(p.num_tokens, p.H);
  for (int64_t first = 0; first < p.num_tokens; first += plan.tokens_per_chunk) {
    const int64_t left = p.num_tokens - first;
    const int64_t num_tokens = left < plan.tokens_per_chunk ? left : plan.tokens_per_chunk;
    const SortedRows sorted = sort_rows(first, num_tokens, p.topk, p.num_experts, id_of, weight_of);
    run_tokens(gemm, kernel, p, first, num_tokens, sorted, w13_of, w2_of, allocate, parallel);
  }
}

}  // namespace moela::cpu
