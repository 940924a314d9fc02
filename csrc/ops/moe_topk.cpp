// Torch side of the CPU moe_topk: check, launch.
#include <cmath>
#include <optional>
#include <string>

#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "moe_topk";

// The arguments that say how to choose, as the op takes them.
struct Router {
  std::string scoring;
  int64_t num_groups;
  int64_t topk_groups;
  std::string group_score;
  bool renormalize;
  double scaling;
};

void check_router(const Router& r, const Tensor& logits, int64_t topk, const std::optional<Tensor>& bias) {
  using enum ScalarType;
  const int64_t E = logits.size(1);
  if (r.scoring != "softmax" && r.scoring != "sigmoid" && r.scoring != "sqrtsoftplus")
    fail(kOp, "scoring", "softmax, sigmoid or sqrtsoftplus", r.scoring);
  if (bias) {
    check_dtype(kOp, "bias", bias->scalar_type(), {BFloat16, Half, Float});
    check_shape(kOp, "bias", *bias, {E});
    check_cpu(kOp, "bias", *bias, "logits");
  }
  if (r.num_groups <= 0) fail(kOp, "num_groups", "a positive number", r.num_groups);
  if (E % r.num_groups != 0) fail(kOp, "num_groups", "a divisor of E=" + std::to_string(E), r.num_groups);
  if (r.topk_groups <= 0 || r.topk_groups > r.num_groups)
    fail(kOp, "topk_groups", "1 .. num_groups=" + std::to_string(r.num_groups), r.topk_groups);
  if (r.group_score != "max" && r.group_score != "top2sum")
    fail(kOp, "group_score", "max or top2sum", r.group_score);
  const int64_t most = E / r.num_groups * r.topk_groups;
  if (topk <= 0 || topk > most)
    fail(kOp, "topk", "1 .. " + std::to_string(most) + " (experts in the groups that stay)", topk);
  if (!std::isfinite(r.scaling)) fail(kOp, "scaling", "a finite number", r.scaling);
}

void check(const Router& r, const Tensor& logits, int64_t topk, const std::optional<Tensor>& bias) {
  using enum ScalarType;
  check_dim(kOp, "logits", logits, 2);
  check_dtype(kOp, "logits", logits.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "logits", logits);
  check_router(r, logits, topk, bias);
}

cpu::Scoring scoring_of(const std::string& name) {
  return name == "softmax"   ? cpu::Scoring::kSoftmax
         : name == "sigmoid" ? cpu::Scoring::kSigmoid
                             : cpu::Scoring::kSqrtSoftplus;
}

void launch(const Router& r, const Tensor& logits, const std::optional<Tensor>& bias, Tensor& weights,
            Tensor& ids) {
  std::optional<Float32View> bias_values;
  if (bias) bias_values.emplace(*bias);
  const cpu::MoeTopkParams p = {
      .logits = logits.const_data_ptr(),
      .dtype = cpu_dtype(logits.scalar_type()),
      .ld = logits.stride(0),
      .bias = bias_values ? bias_values->data() : nullptr,
      .weights = static_cast<float*>(weights.mutable_data_ptr()),
      .ids = static_cast<int32_t*>(ids.mutable_data_ptr()),
      .T = logits.size(0),
      .E = logits.size(1),
      .topk = ids.size(1),
      .scoring = scoring_of(r.scoring),
      .num_groups = r.num_groups,
      .topk_groups = r.topk_groups,
      .group_score = r.group_score == "max" ? cpu::GroupScore::kMax : cpu::GroupScore::kTop2Sum,
      .renormalize = r.renormalize,
      .scaling = static_cast<float>(r.scaling),
  };
  parallel(p.T, static_cast<double>(p.E) + 20. * static_cast<double>(p.topk),
           [&](int64_t begin, int64_t end) {
             const Scratch<float> scratch(cpu::moe_topk_scratch(p.E));
             cpu::kernels().moe_topk(p, scratch.get(), begin, end);
           });
}

std::tuple<Tensor, Tensor> moe_topk(const Tensor& logits, int64_t topk, std::optional<Tensor> bias,
                                    std::string scoring, int64_t num_groups, int64_t topk_groups,
                                    std::string group_score, bool renormalize, double scaling) {
  const Router router = {scoring, num_groups, topk_groups, group_score, renormalize, scaling};
  check(router, logits, topk, bias);
  Tensor weights = empty_cpu({logits.size(0), topk}, ScalarType::Float);
  Tensor ids = empty_cpu({logits.size(0), topk}, ScalarType::Int);
  launch(router, logits, bias, weights, ids);
  return {weights, ids};
}

void moe_topk_out(const Tensor& logits, int64_t topk, std::optional<Tensor> bias, std::string scoring,
                  int64_t num_groups, int64_t topk_groups, std::string group_score, bool renormalize,
                  double scaling, Tensor topk_weights, Tensor topk_ids) {
  const Router router = {scoring, num_groups, topk_groups, group_score, renormalize, scaling};
  check(router, logits, topk, bias);
  check_out("moe_topk_out", "topk_weights", topk_weights, ScalarType::Float, {logits.size(0), topk});
  check_out("moe_topk_out", "topk_ids", topk_ids, ScalarType::Int, {logits.size(0), topk});
  launch(router, logits, bias, topk_weights, topk_ids);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("moe_topk", TORCH_BOX(&moe_topk));
  m.impl("moe_topk_out", TORCH_BOX(&moe_topk_out));
}

}  // namespace moela
