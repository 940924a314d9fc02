// fused_experts on the CPU: what is computed from the sums of the two products of gemm_kernel.h.
//
// Bound: the DRAM rate of the weights for few rows an expert, the multiply-add rate from about eight rows on.
// Neither gate and up nor an expert's result ever leave the cache: the first end in the activation of the
// same task, the second in the sums of the tokens.
//
// Numerics, the same on every instruction set: the sums of gemm_kernel.h with their bias, the activation of
// swiglu_kernel.h, both float32; weight * (sum + bias) is rounded and added to the token's sum, expert by
// expert in ascending order; one rounding at the end. Where pairs of bfloat16 are multiplied, and x is of
// bfloat16, h is rounded to it too.
#pragma once

#include "cpu/fused_experts.h"
#include "cpu/gemm_kernel.h"
#include "cpu/swiglu_kernel.h"

namespace {

using moela::cpu::ExpertRows;
using moela::cpu::FusedExpertsDown;

void gate_up(const GemmChunk& chunk, const moela::cpu::Swiglu& activation, void* h, Dtype h_dtype,
             int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) static thread_local float gate[kSumsSize], up[kSumsSize];
  const GemmProblem& p = *chunk.problem;
  const int64_t I = p.N;
  for (int64_t task = begin; task < end; task += kTasksAtOnce) {
    Columns columns = columns_of(p, task, min_of(kTasksAtOnce, end - task));
    const Columns up_columns = {.n0 = I + columns.n0, .count = columns.count, .next = columns.next};
    columns.next = row_of_b(p, up_columns.n0);
    sum_columns(chunk, columns, gate);
    sum_columns(chunk, up_columns, up);
    const int64_t size = ceil_div(columns.count, kCols) * chunk.num_rows * kCols;
    for (int64_t i = 0; i < size; ++i) gate[i] = swiglu(gate[i], up[i], activation);
    for_tasks(p, columns, chunk.num_rows, gate, [&](const Columns& task_columns, const float* of_task) {
      for (int64_t m = 0; m < chunk.num_rows; ++m)
        store_floats(of_task + m * kCols, task_columns.count, h_dtype, h, m * I + task_columns.n0);
    });
  }
}

void add_to_tokens(const FusedExpertsDown& p, const ExpertRows& rows, const GemmChunk& chunk,
                   const Columns& columns, float* sums) {
  for_tasks(*chunk.problem, columns, chunk.num_rows, sums, [&](const Columns& task, const float* of_task) {
    for (int64_t m = 0; m < chunk.num_rows; ++m) {
      float* to = p.sums + rows.tokens[m] * p.H + task.n0;
      for (int64_t n = 0; n < task.count; ++n) to[n] += rows.weights[m] * of_task[m * kCols + n];
    }
  });
}

void down(const FusedExpertsDown& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) static thread_local float sums[kSumsSize];
  const int64_t n0 = begin * kCols, count = min_of(end * kCols, p.H) - n0;
  if (p.is_first)
    for (int64_t t = 0; t < p.num_tokens; ++t) std::memset(p.sums + t * p.H + n0, 0, count * sizeof(float));
  for (int64_t c = 0; c < p.num_chunks; ++c) {
    // All columns of one expert before the next: its weights are one stream.
    for (int64_t task = begin; task < end; task += kTasksAtOnce) {
      const Columns columns = columns_of(*p.chunks[c].problem, task, min_of(kTasksAtOnce, end - task));
      sum_columns(p.chunks[c], columns, sums);
      add_to_tokens(p, p.rows[c], p.chunks[c], columns, sums);
    }
  }
  if (p.is_last)
    for (int64_t t = 0; t < p.num_tokens; ++t)
      store_floats(p.sums + t * p.H + n0, count, p.out_dtype, p.out, t * p.H + n0);
}

constexpr moela::cpu::FusedExpertsKernels kFusedExpertsKernels = {.gate_up = gate_up, .down = down};

}  // namespace
