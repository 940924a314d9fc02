// The CUDA fp8_gemm on the host:
//   fp8_gemm <tile> <splits> <M> <N> <K> <lda> <ldb> <ldd> <sf_b dtype> <bias dtype or -1> <d dtype>
//   <num_sms>
//            <fraction bits> <schedule> <folder>
// Reads a, sf_a, b, sf_b and bias from files of these names in the folder, writes d there; a tile of -1 is
// the plan's choice. Prints the plan, then "right" or the report.
#include <iostream>
#include <string>

#include "cuda/fp8_gemm/fp8_gemm_launch.h"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[15]) + "/";
  const int M = number(3), N = number(4), K = number(5), blocks_k = (K + 127) / 128;
  cuda::GemmArgs g = {
      .a = static_cast<const uint8_t*>(load(folder + "a")),
      .lda = number(6),
      .sf_a = static_cast<const float*>(load(folder + "sf_a")),
      .sf_a_stride_m = blocks_k,
      .sf_a_stride_k = 1,
      .b = static_cast<const uint8_t*>(load(folder + "b")),
      .ldb = number(7),
      .sf_b = load(folder + "sf_b"),
      .sf_b_dtype = static_cast<cuda::GemmFloat>(number(9)),
      .sf_b_stride_n = blocks_k,
      .sf_b_stride_k = 1,
      .bias = number(10) < 0 ? nullptr : load(folder + "bias"),
      .bias_dtype = static_cast<cuda::GemmFloat>(number(10)),
      .bias_stride = 1,
      .d = nullptr,
      .d_dtype = static_cast<cuda::GemmFloat>(number(11)),
      .ldd = number(8),
      .M = M,
      .N = N,
      .K = K,
  };
  const size_t d_bytes = static_cast<size_t>(M) * g.ldd * (g.d_dtype == cuda::GemmFloat::kFloat32 ? 4 : 2);
  g.d = poisoned(d_bytes);
  plan::GemmSm90Machine machine;
  machine.num_sms = number(12);
  const plan::Fp8GemmSm90Plan plan =
      number(1) < 0 ? plan::plan_fp8_gemm_sm90(M, N, K, machine)
                    : plan::fp8_gemm_sm90_plan_with(number(1), number(2), M, N, machine.num_sms);
  std::cout << plan << "\n";
  cuda::EmulatedStream stream = {schedule_of(argv[14]), {}};
  stream.options.fp8_fraction_bits = number(13);
  const std::string error = cuda::launch_fp8_gemm(g, plan, &stream);
  save(folder + "d", g.d, d_bytes);
  std::cout << (error.empty() ? "right" : error + "\n" + stream.report.text) << "\n";
  return 0;
}
