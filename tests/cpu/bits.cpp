// Prints a hash of what every CPU kernel computes, per instruction set: "<set> <case> <hash>". For machines
// that torch does not run on, such as an emulated one; tests/cpu/test_neon.py builds it and compares.
#include "bits.h"

#include <string>
#include <vector>

#include "bits_attention.h"
#include "cpu/fp8_gemm.h"
#include "cpu/fused_experts_driver.h"
#include "cpu/grouped_gemm_wgrad.h"

namespace {

void fp8_gemm(const Kernels& kernels, Dtype a_dtype, int64_t M, int64_t N, int64_t K, bool large_sf) {
  const int64_t blocks_n = (N + 127) / 128, blocks_k = (K + 127) / 128;
  const std::vector<uint8_t> a = elements(a_dtype, M * K, M + 1);
  std::vector<uint8_t> b = elements(Dtype::kE4m3, N * K, N + 2);
  for (size_t i = 0; i < b.size(); ++i)  // NaN in one row only
    if ((b[i] & 0x7F) == 0x7F && static_cast<int64_t>(i) / K != 1) b[i] ^= 0x08;
  const std::vector<float> sf_a = floats(M * blocks_k, 3), bias = floats(N, 4);
  std::vector<float> sf_b = floats(blocks_n * blocks_k, 5);
  if (large_sf) sf_b.back() = 0x1.8p30f;
  std::vector<float> d(M * N);
  const moela::cpu::GemmProblem problem = {
      .a = a.data(),
      .a_dtype = a_dtype,
      .lda = K,
      .a_rows = nullptr,
      .sf_a = a_dtype == Dtype::kE4m3 ? sf_a.data() : nullptr,
      .sf_a_stride_m = blocks_k,
      .sf_a_stride_k = 1,
      .a_cast = moela::cpu::ActivationCast::kNone,
      .b = b.data(),
      .b_dtype = Dtype::kE4m3,
      .stride_bn = K,
      .stride_bk = 1,
      .sf_b = sf_b.data(),
      .has_large_sf = moela::cpu::has_large_sf(sf_b.data(), static_cast<int64_t>(sf_b.size())),
      .bias = bias.data(),
      .d = d.data(),
      .d_dtype = Dtype::kFloat32,
      .ldd = N,
      .M = M,
      .N = N,
      .K = K,
  };
  moela::cpu::fp8_gemm(kernels.gemm, problem, allocate, run_here);
  canonical_nan(d);
  print(kernels,
        "fp8_gemm-" + std::to_string(static_cast<int>(a_dtype)) + "-" + std::to_string(M) + "-" +
            std::to_string(N) + "-" + std::to_string(K) + (large_sf ? "-large" : ""),
        d);
}

// Weights of every type, stored [E, N, K] or [E, K, N].
void grouped_gemm(const Kernels& kernels, Dtype dtype, bool n_contiguous) {
  constexpr int64_t kN = 37, kK = 1100;
  const std::vector<int32_t> offsets = {0, 1, 1, 7, 30};
  const std::vector<uint8_t> a = elements(dtype, 30 * kK, 9), b = elements(dtype, 4 * kN * kK, 10);
  std::vector<float> d(30 * kN);
  moela::cpu::GemmProblem all = {};
  all.a = a.data();
  all.b = b.data();
  all.d = d.data();
  all.a_dtype = all.b_dtype = dtype;
  all.d_dtype = Dtype::kFloat32;
  all.lda = all.K = kK;
  all.ldd = all.N = kN;
  all.stride_bn = n_contiguous ? 1 : kK;
  all.stride_bk = n_contiguous ? kN : 1;
  const auto problems = moela::cpu::problems_of(moela::cpu::GroupedGemmParams{
      .all = all, .stride_be = kN * kK, .expert_offsets = offsets.data(), .num_experts = 4});
  moela::cpu::run_gemms(kernels.gemm, problems, allocate, run_here);
  canonical_nan(d);
  print(kernels, "grouped_gemm-" + std::to_string(static_cast<int>(dtype)) + (n_contiguous ? "-n" : "-k"), d);
}

void grouped_gemm_wgrad(const Kernels& kernels, Dtype dtype) {
  constexpr int64_t kN = 37, kK = 70;
  const std::vector<int32_t> offsets = {0, 1, 1, 70, 1200};
  const std::vector<uint8_t> grad = elements(dtype, 1200 * kN, 11), a = elements(dtype, 1200 * kK, 12);
  std::vector<uint8_t> grad_b(4 * kN * kK * element_size(dtype));
  const auto problems =
      moela::cpu::problems_of(moela::cpu::GroupedGemmWgradParams{.grad = grad.data(),
                                                                 .ld_grad = kN,
                                                                 .a = a.data(),
                                                                 .lda = kK,
                                                                 .dtype = dtype,
                                                                 .grad_b = grad_b.data(),
                                                                 .N = kN,
                                                                 .K = kK,
                                                                 .expert_offsets = offsets.data(),
                                                                 .num_experts = 4});
  moela::cpu::run_gemms(kernels.grouped_gemm_wgrad, problems, allocate, run_here);
  print(kernels, "grouped_gemm_wgrad-" + std::to_string(static_cast<int>(dtype)), grad_b);
}

// A third of the scale factors meet inside a task: I is no multiple of 128.
void fused_experts(const Kernels& kernels, Dtype w_dtype, int64_t num_tokens,
                   moela::cpu::ActivationCast cast) {
  constexpr int64_t kE = 3, kH = 1100, kI = 75, kTopk = 2;
  const std::vector<float> x = floats(num_tokens * kH, 13), weights = floats(num_tokens * kTopk, 14);
  std::vector<uint8_t> w13 = elements(w_dtype, kE * 2 * kI * kH, 15),
                       w2 = elements(w_dtype, kE * kH * kI, 16);
  if (w_dtype == Dtype::kE4m3)
    for (std::vector<uint8_t>* w : {&w13, &w2})
      for (uint8_t& code : *w) code &= 0xF7;  // no NaN
  const std::vector<float> sf13 = floats(kE * 2 * 9, 17), sf2 = floats(kE * 9, 18);
  std::vector<float> out(num_tokens * kH);
  const moela::cpu::FusedExpertsParams p = {
      .x = x.data(),
      .out = out.data(),
      .dtype = Dtype::kFloat32,
      .ldx = kH,
      .num_tokens = num_tokens,
      .topk = kTopk,
      .num_experts = kE,
      .H = kH,
      .I = kI,
      .activation = {.limit = __builtin_inff(), .alpha = 1.f, .shift = 0.f},
      .cast = cast};
  const auto expert = [&](const std::vector<uint8_t>& w, const float* sf, int64_t e, int64_t N, int64_t K) {
    moela::cpu::GemmProblem problem = {};
    problem.b = w.data() + e * N * K * element_size(w_dtype);
    problem.b_dtype = w_dtype;
    problem.stride_bn = problem.K = K;
    problem.stride_bk = 1;
    problem.N = N;
    if (w_dtype == Dtype::kE4m3) problem.sf_b = sf;
    return problem;
  };
  moela::cpu::run_fused_experts(
      kernels.gemm, kernels.fused_experts, p,
      [&](int64_t token, int64_t k) { return (token * 7 + k) % (kE + 1); },  // one in four is outside
      [&](int64_t token, int64_t k) { return weights[token * kTopk + k]; },
      [&](int64_t e) { return expert(w13, sf13.data() + e * 18, e, 2 * kI, kH); },
      [&](int64_t e) { return expert(w2, sf2.data() + e * 9, e, kH, kI); }, allocate, run_here);
  canonical_nan(out);
  print(kernels,
        "fused_experts-" + std::to_string(static_cast<int>(w_dtype)) + "-" + std::to_string(num_tokens) +
            "-" + std::to_string(static_cast<int>(cast)),
        out);
}

void casts(const Kernels& kernels, Dtype dtype, int64_t N, int64_t K, bool ue8m0) {
  const std::vector<uint8_t> x = elements(dtype, N * K, 7);
  const int64_t blocks_n = (N + 127) / 128, blocks_k = (K + 127) / 128;
  std::vector<uint8_t> q(N * K), q_block(N * K);
  std::vector<float> sf(N * blocks_k), sf_block(blocks_n * blocks_k);
  const std::string name = std::to_string(static_cast<int>(dtype)) + (ue8m0 ? "-ue8m0" : "");
  kernels.per_token_group_quant_fp8({.x = x.data(),
                                     .x_dtype = dtype,
                                     .ldx = K,
                                     .q = q.data(),
                                     .sf = sf.data(),
                                     .M = N,
                                     .K = K,
                                     .group_size = 128,
                                     .ue8m0 = ue8m0},
                                    0, N);
  print(kernels, "per_token_group_quant_fp8-q-" + name, q);
  print(kernels, "per_token_group_quant_fp8-sf-" + name, sf);
  kernels.per_block_quant_fp8({.w = x.data(),
                               .w_dtype = dtype,
                               .stride_e = N * K,
                               .ldw = K,
                               .q = q_block.data(),
                               .sf = sf_block.data(),
                               .E = 1,
                               .N = N,
                               .K = K,
                               .ue8m0 = ue8m0},
                              0, blocks_n);
  print(kernels, "per_block_quant_fp8-q-" + name, q_block);
  print(kernels, "per_block_quant_fp8-sf-" + name, sf_block);
  std::vector<uint8_t> w(N * K * element_size(dtype));
  kernels.per_block_dequant_fp8({.q = q_block.data(),
                                 .stride_e = N * K,
                                 .ldq = K,
                                 .sf = sf_block.data(),
                                 .w = w.data(),
                                 .w_dtype = dtype,
                                 .E = 1,
                                 .N = N,
                                 .K = K},
                                0, N);
  print(kernels, "per_block_dequant_fp8-" + name, w);
}

void activations(const Kernels& kernels, Dtype dtype, moela::cpu::Swiglu activation) {
  constexpr int64_t kM = 7, kK = 700;
  const std::vector<uint8_t> x = elements(dtype, kM * 2 * kK, 8);
  std::vector<uint8_t> y(kM * kK * element_size(dtype)), q(kM * kK);
  std::vector<float> sf(kM * ((kK + 599) / 600));
  const std::string name =
      std::to_string(static_cast<int>(dtype)) + "-" + std::to_string(static_cast<int>(activation.shift));
  kernels.silu_and_mul({.x = x.data(),
                        .dtype = dtype,
                        .ldx = 2 * kK,
                        .y = y.data(),
                        .M = kM,
                        .K = kK,
                        .activation = activation},
                       0, kM);
  print(kernels, "silu_and_mul-" + name, y);
  kernels.silu_and_mul_quant_fp8({.x = x.data(),
                                  .x_dtype = dtype,
                                  .ldx = 2 * kK,
                                  .q = q.data(),
                                  .sf = sf.data(),
                                  .M = kM,
                                  .K = kK,
                                  .activation = activation,
                                  .group_size = 600,
                                  .ue8m0 = false},
                                 0, kM);
  print(kernels, "silu_and_mul_quant_fp8-q-" + name, q);
  print(kernels, "silu_and_mul_quant_fp8-sf-" + name, sf);
}

void routers(const Kernels& kernels, Dtype dtype, moela::cpu::Scoring scoring, bool has_bias) {
  constexpr int64_t kT = 9, kE = 72, kTopk = 11;
  const std::vector<uint8_t> logits = elements(dtype, kT * kE, 9);
  const std::vector<float> bias = floats(kE, 10);
  std::vector<float> weights(kT * kTopk), scratch(moela::cpu::moe_topk_scratch(kE));
  std::vector<int32_t> ids(kT * kTopk);
  kernels.moe_topk({.logits = logits.data(),
                    .dtype = dtype,
                    .ld = kE,
                    .bias = has_bias ? bias.data() : nullptr,
                    .weights = weights.data(),
                    .ids = ids.data(),
                    .T = kT,
                    .E = kE,
                    .topk = kTopk,
                    .scoring = scoring,
                    .num_groups = 8,
                    .topk_groups = 3,
                    .group_score = moela::cpu::GroupScore::kTop2Sum,
                    .renormalize = true,
                    .scaling = 2.5f},
                   scratch.data(), 0, kT);
  const std::string name = std::to_string(static_cast<int>(dtype)) + "-" +
                           std::to_string(static_cast<int>(scoring)) + (has_bias ? "-bias" : "");
  print(kernels, "moe_topk-weights-" + name, weights);
  print(kernels, "moe_topk-ids-" + name, ids);
}

void permutations(const Kernels& kernels, Dtype dtype) {
  constexpr int64_t kT = 6, kH = 333, kTopk = 15;
  const std::vector<uint8_t> y = elements(dtype, kT * kTopk * kH, 11);
  const std::vector<float> weights = floats(kT * kTopk, 12);
  std::vector<int32_t> inverse(kT * kTopk);
  int32_t num_rows = 0;
  for (size_t i = 0; i < inverse.size(); ++i) inverse[i] = i % 7 == 3 ? -1 : num_rows++;
  std::vector<uint8_t> out(kT * kH * element_size(dtype)), x_sorted(y.size());
  kernels.moe_unpermute({.y = y.data(),
                         .dtype = dtype,
                         .ldy = kH,
                         .weights = weights.data(),
                         .ldw = kTopk,
                         .inverse = inverse.data(),
                         .ldi = kTopk,
                         .out = out.data(),
                         .R = kT * kTopk,
                         .H = kH,
                         .topk = kTopk},
                        0, kT);
  kernels.moe_permute({.x = y.data(),
                       .row_bytes = kH * element_size(dtype),
                       .ldx_bytes = kH * element_size(dtype),
                       .inverse = inverse.data(),
                       .x_sorted = x_sorted.data(),
                       .topk = kTopk,
                       .num_rows = num_rows},
                      0, kT);
  print(kernels, "moe_unpermute-" + std::to_string(static_cast<int>(dtype)), out);
  print(kernels, "moe_permute-" + std::to_string(static_cast<int>(dtype)), x_sorted);
}

void all(const Kernels& kernels) {
  const Dtype wide[] = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};
  for (const Dtype dtype : {wide[0], wide[1], wide[2], Dtype::kE4m3})
    for (const int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 30}) fp8_gemm(kernels, dtype, M, 37, 200, false);
  for (const int64_t M : {1, 2, 5, 17}) {
    fp8_gemm(kernels, Dtype::kBFloat16, M, 130, 2112, false);
    fp8_gemm(kernels, Dtype::kBFloat16, M, 40, 1024, true);
  }
  for (const Dtype dtype : wide) {
    grouped_gemm(kernels, dtype, false);
    grouped_gemm(kernels, dtype, true);
    grouped_gemm_wgrad(kernels, dtype);
    fused_experts(kernels, dtype, 9, moela::cpu::ActivationCast::kNone);
  }
  for (const int64_t num_tokens : {1, 4, 30})
    fused_experts(kernels, Dtype::kE4m3, num_tokens, moela::cpu::ActivationCast::kNone);
  fused_experts(kernels, Dtype::kE4m3, 9, moela::cpu::ActivationCast::kFp8);
  fused_experts(kernels, Dtype::kE4m3, 9, moela::cpu::ActivationCast::kFp8Ue8m0);
  for (const Dtype dtype : wide)
    for (const bool ue8m0 : {false, true}) casts(kernels, dtype, 131, 200, ue8m0);
  for (const Dtype dtype : wide) {
    activations(kernels, dtype, {.limit = __builtin_inff(), .alpha = 1.f, .shift = 0.f});
    activations(kernels, dtype, {.limit = 7.f, .alpha = 1.702f, .shift = 1.f});
    permutations(kernels, dtype);
    states(kernels, dtype);
    for (const Dtype cache_dtype : {dtype, Dtype::kE4m3})
      for (const bool is_split : {false, true}) cache_writes(kernels, dtype, cache_dtype, is_split);
    for (const bool causal : {false, true}) prefill(kernels, dtype, causal);
  }
  indexer(kernels, 37, 70);
  indexer(kernels, 64, 128);
  using enum moela::cpu::Scoring;
  for (const Dtype dtype : wide)
    for (const auto scoring : {kSoftmax, kSigmoid, kSqrtSoftplus})
      for (const bool has_bias : {false, true}) routers(kernels, dtype, scoring, has_bias);
}

}  // namespace

int main() {
  all(moela::cpu::kScalar);
#if defined(MOELA_ISA_neon)
  all(moela::cpu::kNeon);
#endif
}
