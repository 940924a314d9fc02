// Torch side of the CPU fp8_gemm: check, plan, launch. Definition: python/moela/reference/fp8_gemm.py.
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

// One chunk of rows: pack, then every task.
void launch_chunk(const cpu::Fp8GemmParams& p, const plan::Fp8GemmPlan& plan, cpu::Fp8GemmChunk chunk) {
  const cpu::Fp8GemmKernels& kernel = cpu::kernels().fp8_gemm;
  chunk.tiny = plan.code_panel && kernel.fits_tiny(p, chunk.m0, chunk.num_rows);
  // A packed element takes about half a nanosecond; a task reads its weights at 10 GB/s or multiplies at 100
  // GFLOP/s.
  const auto rows = static_cast<double>(chunk.num_rows), K = static_cast<double>(p.K);
  parallel(blocks(p.K), 0.5 * rows * kBlock,
           [&](int64_t begin, int64_t end) { kernel.pack(p, chunk, begin, end); });
  parallel(plan.num_tasks, kernel.shape.cols * K * (0.1 + 0.02 * rows),
           [&](int64_t begin, int64_t end) { kernel.run(p, chunk, begin, end); });
}

void launch(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
            const std::optional<Tensor>& bias, Tensor& d) {
  const Float32View sf_b_values(sf_b);
  const std::optional<Float32View> bias_values = bias ? std::optional<Float32View>(*bias) : std::nullopt;
  const cpu::Fp8GemmParams p = {
      .a = a.const_data_ptr(),
      .a_dtype = cpu_dtype(a.scalar_type()),
      .lda = a.stride(0),
      .sf_a = sf_a ? static_cast<const float*>(sf_a->const_data_ptr()) : nullptr,
      .sf_a_stride_m = sf_a ? sf_a->stride(0) : 0,
      .sf_a_stride_k = sf_a ? sf_a->stride(1) : 0,
      .b = static_cast<const uint8_t*>(b.const_data_ptr()),
      .ldb = b.stride(0),
      .sf_b = sf_b_values.data(),
      .bias = bias_values ? bias_values->data() : nullptr,
      .d = d.mutable_data_ptr(),
      .d_dtype = cpu_dtype(d.scalar_type()),
      .ldd = d.stride(0),
      .M = a.size(0),
      .N = b.size(0),
      .K = a.size(1),
  };
  if (p.M == 0 || p.N == 0) return;
  const plan::Fp8GemmPlan plan = plan::plan_fp8_gemm(p.M, p.N, cpu::kernels().fp8_gemm.shape);
  const Scratch<float> packed_a(blocks(p.K) * kBlock * plan.rows_per_chunk);
  const Scratch<float> packed_sf(sf_a ? blocks(p.K) * plan.rows_per_chunk : 0);
  for (int64_t m0 = 0; m0 < p.M; m0 += plan.rows_per_chunk) {
    const int64_t rows = p.M - m0 < plan.rows_per_chunk ? p.M - m0 : plan.rows_per_chunk;
    launch_chunk(p, plan,
                 {.m0 = m0, .num_rows = rows, .a = packed_a.get(), .sf_a = packed_sf.get(), .tiny = false});
  }
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
