// The CUDA grouped_fp8_gemm and grouped_fp8_gemm_masked on the host:
//   grouped_fp8_gemm <tile> <splits> <GroupKind> <E> <M> <N> <K> <lda> <ldb> <ldd> <sf_b dtype> <d dtype>
//                    <num_sms> <fraction bits> <schedule> <folder>
// Reads a, sf_a, b, sf_b and table (of the groups) from files of these names in the folder, writes d there; a
// tile of -1 is the plan's choice. Masked, a row lies between the experts' matrices of a, sf_a and d. Prints
// the plan, then "right" or the report.
#include <iostream>
#include <string>

#include "cuda/grouped_fp8_gemm/grouped_fp8_gemm_launch.h"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[16]) + "/";
  const auto groups = static_cast<cuda::GroupKind>(number(3));
  const int E = number(4), M = number(5), N = number(6), K = number(7), blocks_k = (K + 127) / 128;
  const int lda = number(8), ldb = number(9), ldd = number(10), blocks_n = (N + 127) / 128;
  const int rows_e = groups == cuda::GroupKind::kCounts ? M + 1 : 0;
  cuda::GemmArgs g = {
      .a = static_cast<const uint8_t*>(load(folder + "a")),
      .lda = lda,
      .a_stride_e = rows_e * lda,
      .sf_a = static_cast<const float*>(load(folder + "sf_a")),
      .sf_a_stride_m = blocks_k,
      .sf_a_stride_k = 1,
      .sf_a_stride_e = rows_e * blocks_k,
      .b = static_cast<const uint8_t*>(load(folder + "b")),
      .ldb = ldb,
      .b_stride_e = N * ldb,
      .sf_b = load(folder + "sf_b"),
      .sf_b_dtype = static_cast<cuda::GemmFloat>(number(11)),
      .sf_b_stride_n = blocks_k,
      .sf_b_stride_k = 1,
      .sf_b_stride_e = blocks_n * blocks_k,
      .d = nullptr,
      .d_dtype = static_cast<cuda::GemmFloat>(number(12)),
      .ldd = ldd,
      .d_stride_e = rows_e * ldd,
      .M = M,
      .N = N,
      .K = K,
      .groups = groups,
      .table = static_cast<const int32_t*>(load(folder + "table")),
      .num_experts = E,
  };
  const size_t d_rows = static_cast<size_t>(rows_e == 0 ? M : E * rows_e);
  const size_t d_bytes = d_rows * ldd * (g.d_dtype == cuda::GemmFloat::kFloat32 ? 4 : 2);
  g.d = poisoned(d_bytes);
  plan::GemmSm90Machine machine;
  machine.num_sms = number(13);
  const plan::GroupedRows rows = cuda::grouped_rows(g);
  const plan::GroupedFp8GemmSm90Plan plan =
      number(1) < 0 ? plan::plan_grouped_fp8_gemm_sm90(rows, N, K, machine)
                    : plan::grouped_fp8_gemm_sm90_plan_with(number(1), number(2), rows, N, machine.num_sms);
  std::cout << plan << "\n";
  cuda::EmulatedStream stream = {schedule_of(argv[15]), {}};
  stream.options.fp8_fraction_bits = number(14);
  const std::string error = cuda::launch_grouped_fp8_gemm(g, plan, &stream);
  save(folder + "d", g.d, d_bytes);
  std::cout << (error.empty() ? "right" : error + "\n" + stream.report.text) << "\n";
  return 0;
}
