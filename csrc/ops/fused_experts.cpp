// Torch side of the CPU fused_experts: check, plan, launch. Definition:
// python/moela/reference/fused_experts.py.
#include "common/fp8_operands.h"
#include "common/swiglu.h"
#include "cpu/fp8_gemm.h"
#include "cpu/fused_experts_driver.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "fused_experts";
using Number = std::optional<double>;
using MaybeTensor = std::optional<Tensor>;

struct Args {
  const Tensor &x, &w13, &w2, &topk_weights, &topk_ids;
  const MaybeTensor &sf_w13, &sf_w2, &b13, &b2;
  const std::string& activation;
  Number limit, alpha;
  const std::optional<std::string>& quantize_activations;
};

void check_sf(const char* name, const MaybeTensor& sf, const char* owner, const Tensor& w) {
  using enum ScalarType;
  if (w.scalar_type() != Float8_e4m3fn) {
    if (sf)
      fail(kOp, name, std::string("None because ") + owner + " is " + dtype_name(w.scalar_type()),
           "a tensor");
    return;
  }
  if (!sf) fail(kOp, name, std::string("a tensor because ") + owner + " is float8_e4m3fn", "None");
  check_dtype(kOp, name, sf->scalar_type(), {Float, BFloat16, Float8_e8m0fnu});
  check_shape(kOp, name, *sf, block_grid(w));
  check_cpu(kOp, name, *sf, "x");
}

void check_bias(const char* name, const MaybeTensor& bias, const Tensor& w) {
  using enum ScalarType;
  if (!bias) return;
  check_dtype(kOp, name, bias->scalar_type(), {BFloat16, Half, Float});
  check_shape(kOp, name, *bias, {w.size(0), w.size(1)});
  check_last_dim_contiguous(kOp, name, *bias);
  check_cpu(kOp, name, *bias, "x");
}

void check_weights(const Args& args) {
  using enum ScalarType;
  const auto& [x, w13, w2] = std::tie(args.x, args.w13, args.w2);
  check_dim(kOp, "w13", w13, 3);
  check_dtype(kOp, "w13", w13.scalar_type(), {Float8_e4m3fn, x.scalar_type()});
  check_same(kOp, "w13", "H", w13.size(2), x.size(1), "x");
  if (w13.size(1) % 2 != 0) fail(kOp, "w13", "an even number of rows", w13.size(1));
  check_dtype(kOp, "w2", w2.scalar_type(), {w13.scalar_type()});
  check_shape(kOp, "w2", w2, {w13.size(0), x.size(1), w13.size(1) / 2});
  check_last_dim_contiguous(kOp, "w13", w13);
  check_cpu(kOp, "w13", w13, "x");
  check_last_dim_contiguous(kOp, "w2", w2);
  check_cpu(kOp, "w2", w2, "x");
}

void check_routing(const Args& args) {
  using enum ScalarType;
  check_dim(kOp, "topk_ids", args.topk_ids, 2);
  check_dtype(kOp, "topk_ids", args.topk_ids.scalar_type(), {Int, Long});
  check_same(kOp, "topk_ids", "T", args.topk_ids.size(0), args.x.size(0), "x");
  check_cpu(kOp, "topk_ids", args.topk_ids, "x");
  check_dtype(kOp, "topk_weights", args.topk_weights.scalar_type(), {Float});
  check_shape(kOp, "topk_weights", args.topk_weights, {args.x.size(0), args.topk_ids.size(1)});
  check_cpu(kOp, "topk_weights", args.topk_weights, "x");
}

cpu::ActivationCast cast_of(const Args& args) {
  if (!args.quantize_activations) return cpu::ActivationCast::kNone;
  const std::string& name = *args.quantize_activations;
  if (name != "fp8" && name != "fp8_ue8m0") fail(kOp, "quantize_activations", "None, fp8 or fp8_ue8m0", name);
  if (args.w13.scalar_type() != ScalarType::Float8_e4m3fn)
    fail(kOp, "quantize_activations",
         std::string("None because w13 is ") + dtype_name(args.w13.scalar_type()), name);
  return name == "fp8" ? cpu::ActivationCast::kFp8 : cpu::ActivationCast::kFp8Ue8m0;
}

void check(const Args& args) {
  using enum ScalarType;
  check_dim(kOp, "x", args.x, 2);
  check_dtype(kOp, "x", args.x.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "x", args.x);
  check_weights(args);
  check_routing(args);
  check_sf("sf_w13", args.sf_w13, "w13", args.w13);
  check_sf("sf_w2", args.sf_w2, "w2", args.w2);
  check_bias("b13", args.b13, args.w13);
  check_bias("b2", args.b2, args.w2);
  if (args.activation != "silu") fail(kOp, "activation", "silu", args.activation);
  check_limits(kOp, args.limit, args.alpha);
  cast_of(args);
}

// The weights of an expert, with their scale factors and bias, as a product without rows.
class Weights {
 public:
  Weights(const Tensor& w, const MaybeTensor& sf, const MaybeTensor& bias) : w_(w) {
    if (sf) sf_.emplace(*sf);
    if (bias) bias_.emplace(*bias);
  }
  cpu::GemmProblem of(int64_t expert) {
    cpu::GemmProblem p = {};
    p.b_dtype = cpu_dtype(w_.scalar_type());
    p.b = cpu::at_element(w_.const_data_ptr(), p.b_dtype, expert * w_.stride(0));
    p.stride_bn = w_.stride(1);
    p.stride_bk = 1;
    p.N = w_.size(1);
    p.K = w_.size(2);
    if (sf_) {
      p.sf_b = sf_->of(expert);
      p.has_large_sf = cpu::has_large_sf(p.sf_b, (p.N + 127) / 128 * ((p.K + 127) / 128));
    }
    if (bias_) p.bias = bias_->of(expert);
    return p;
  }

 private:
  const Tensor& w_;
  std::optional<ExpertFloats> sf_, bias_;
};

// f(token, k) of a [T, topk] tensor of T.
template <class T>
auto reader(const Tensor& t) {
  return [data = static_cast<const T*>(t.const_data_ptr()), rows = t.stride(0), cols = t.stride(1)](
             int64_t token, int64_t k) { return data[token * rows + k * cols]; };
}

void launch(const Args& args, Tensor& out) {
  const cpu::FusedExpertsParams p = {.x = args.x.const_data_ptr(),
                                     .out = out.mutable_data_ptr(),
                                     .dtype = cpu_dtype(args.x.scalar_type()),
                                     .ldx = args.x.stride(0),
                                     .num_tokens = args.x.size(0),
                                     .topk = args.topk_ids.size(1),
                                     .num_experts = args.w13.size(0),
                                     .H = args.x.size(1),
                                     .I = args.w2.size(2),
                                     .activation = swiglu_of(args.limit, args.alpha),
                                     .cast = cast_of(args)};
  Weights w13(args.w13, args.sf_w13, args.b13), w2(args.w2, args.sf_w2, args.b2);
  const auto run = [&](const auto& id_of) {
    cpu::run_fused_experts(
        cpu::kernels().gemm, cpu::kernels().fused_experts, p, id_of, reader<float>(args.topk_weights),
        [&](int64_t expert) { return w13.of(expert); }, [&](int64_t expert) { return w2.of(expert); },
        allocate_floats, [](auto... xs) { parallel(xs...); });
  };
  if (args.topk_ids.scalar_type() == ScalarType::Int)
    run(reader<int32_t>(args.topk_ids));
  else
    run(reader<int64_t>(args.topk_ids));
}

Tensor fused_experts(const Tensor& x, const Tensor& w13, const Tensor& w2, const Tensor& topk_weights,
                     const Tensor& topk_ids, MaybeTensor sf_w13, MaybeTensor sf_w2, MaybeTensor b13,
                     MaybeTensor b2, std::string activation, Number limit, Number alpha,
                     std::optional<std::string> quantize_activations) {
  const Args args = {x,          w13,   w2,    topk_weights,        topk_ids, sf_w13, sf_w2, b13, b2,
                     activation, limit, alpha, quantize_activations};
  check(args);
  Tensor out = empty_cpu(sizes_of(x), x.scalar_type());
  launch(args, out);
  return out;
}

void fused_experts_out(const Tensor& x, const Tensor& w13, const Tensor& w2, const Tensor& topk_weights,
                       const Tensor& topk_ids, MaybeTensor sf_w13, MaybeTensor sf_w2, MaybeTensor b13,
                       MaybeTensor b2, std::string activation, Number limit, Number alpha,
                       std::optional<std::string> quantize_activations, Tensor out) {
  const Args args = {x,          w13,   w2,    topk_weights,        topk_ids, sf_w13, sf_w2, b13, b2,
                     activation, limit, alpha, quantize_activations};
  check(args);
  check_out("fused_experts_out", "out", out, x.scalar_type(), sizes_of(x));
  launch(args, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("fused_experts", TORCH_BOX(&fused_experts));
  m.impl("fused_experts_out", TORCH_BOX(&fused_experts_out));
}

}  // namespace moela
