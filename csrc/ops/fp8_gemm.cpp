// Torch side of the CPU fp8_gemm: check, plan, launch. Definition: python/moela/reference/fp8_gemm.py.
#include "cpu/fp8_gemm.h"

#include "common/check.h"
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "fp8_gemm";
constexpr int64_t kBlock = 128;

int64_t blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

void check(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
           const std::optional<Tensor>& bias, ScalarType out_dtype) {
  using enum ScalarType;
  check_dim(kOp, "a", a, 2);
  check_dtype(kOp, "a", a.scalar_type(), {Float8_e4m3fn, BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "a", a);
  check_dim(kOp, "b", b, 2);
  check_dtype(kOp, "b", b.scalar_type(), {Float8_e4m3fn});
  const int64_t M = a.size(0), K = a.size(1), N = b.size(0);
  if (b.size(1) != K)
    fail(kOp, "b", "K=" + std::to_string(K) + " (that of a)", "K=" + std::to_string(b.size(1)));
  check_last_dim_contiguous(kOp, "b", b);
  check_cpu(kOp, "b", b, "a");
  if (a.scalar_type() == Float8_e4m3fn) {
    if (!sf_a) fail(kOp, "sf_a", "a tensor because a is float8_e4m3fn", "None");
    check_dtype(kOp, "sf_a", sf_a->scalar_type(), {Float});
    check_shape(kOp, "sf_a", *sf_a, {M, blocks(K)});
    check_cpu(kOp, "sf_a", *sf_a, "a");
  } else if (sf_a) {
    fail(kOp, "sf_a", std::string("None because a is ") + dtype_name(a.scalar_type()), "a tensor");
  }
  check_dtype(kOp, "sf_b", sf_b.scalar_type(), {Float, BFloat16, Float8_e8m0fnu});
  check_shape(kOp, "sf_b", sf_b, {blocks(N), blocks(K)});
  check_cpu(kOp, "sf_b", sf_b, "a");
  if (bias) {
    check_dtype(kOp, "bias", bias->scalar_type(), {BFloat16, Half, Float});
    check_shape(kOp, "bias", *bias, {N});
    check_cpu(kOp, "bias", *bias, "a");
  }
  check_dtype(kOp, "out_dtype", out_dtype, {BFloat16, Half, Float});
}

void launch(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
            const std::optional<Tensor>& bias, Tensor& d) {
  const Float32View sf_b_values(sf_b);
  const std::optional<Float32View> bias_values = bias ? std::optional<Float32View>(*bias) : std::nullopt;
  const cpu::GemmProblem problem = {
      .a = a.const_data_ptr(),
      .a_dtype = cpu_dtype(a.scalar_type()),
      .lda = a.stride(0),
      .a_rows = nullptr,
      .sf_a = sf_a ? static_cast<const float*>(sf_a->const_data_ptr()) : nullptr,
      .sf_a_stride_m = sf_a ? sf_a->stride(0) : 0,
      .sf_a_stride_k = sf_a ? sf_a->stride(1) : 0,
      .a_cast = cpu::ActivationCast::kNone,
      .b = b.const_data_ptr(),
      .b_dtype = cpu::Dtype::kE4m3,
      .stride_bn = b.stride(0),
      .stride_bk = 1,
      .sf_b = sf_b_values.data(),
      .has_large_sf = cpu::has_large_sf(sf_b_values.data(), sf_b.numel()),
      .bias = bias_values ? bias_values->data() : nullptr,
      .d = d.mutable_data_ptr(),
      .d_dtype = cpu_dtype(d.scalar_type()),
      .ldd = d.stride(0),
      .M = a.size(0),
      .N = b.size(0),
      .K = a.size(1),
  };
  cpu::fp8_gemm(cpu::kernels().gemm, problem, allocate_floats, [](auto... args) { parallel(args...); });
}

Tensor fp8_gemm(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                const std::optional<Tensor>& bias, ScalarType out_dtype) {
  check(a, sf_a, b, sf_b, bias, out_dtype);
  Tensor d = empty_cpu({a.size(0), b.size(0)}, out_dtype);
  launch(a, sf_a, b, sf_b, bias, d);
  return d;
}

void fp8_gemm_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                  const std::optional<Tensor>& bias, Tensor d) {
  check(a, sf_a, b, sf_b, bias, d.scalar_type());
  check_shape("fp8_gemm_out", "d", d, {a.size(0), b.size(0)});
  check_cpu("fp8_gemm_out", "d", d, "the inputs");
  check_last_dim_contiguous("fp8_gemm_out", "d", d);
  launch(a, sf_a, b, sf_b, bias, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("fp8_gemm", TORCH_BOX(&fp8_gemm));
  m.impl("fp8_gemm_out", TORCH_BOX(&fp8_gemm_out));
}

}  // namespace moela
