// The CUDA silu_and_mul_quant_fp8 on the host:
//   silu_quant <dtype 0..2> <M> <K> <ldx> <group_size> <ue8m0> <limit> <alpha> <shift> <schedule> <x> <q>
//   <sf>
// Reads x from a file, writes q and sf to files, prints "right" or the report.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cuda/silu_and_mul_quant_fp8/silu_and_mul_quant_fp8_sm90.cuh"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  std::ifstream file(argv[11], std::ios::binary);
  const std::vector<char> x((std::istreambuf_iterator<char>(file)), {});
  cuda::SiluAndMulQuantFp8Params p = {.x = nullptr,
                                      .x_dtype = static_cast<cuda::QuantInput>(std::stoi(argv[1])),
                                      .ldx = std::stoll(argv[4]),
                                      .q = nullptr,
                                      .sf = nullptr,
                                      .M = std::stoll(argv[2]),
                                      .K = std::stoll(argv[3]),
                                      .limit = std::stof(argv[7]),
                                      .alpha = std::stof(argv[8]),
                                      .shift = std::stof(argv[9]),
                                      .group_size = std::stoll(argv[5]),
                                      .ue8m0 = std::stoi(argv[6]) != 0};
  const size_t q_bytes = static_cast<size_t>(p.M * p.K),
               sf_bytes =
                   static_cast<size_t>(p.M * ((p.K + p.group_size - 1) / p.group_size)) * sizeof(float);
  void* device_x = emu::allocate(x.size());
  emu::copy_to(device_x, x.data(), x.size());
  p.x = device_x;
  p.q = static_cast<uint8_t*>(emu::allocate(q_bytes));
  p.sf = static_cast<float*>(emu::allocate(sf_bytes));
  cuda::EmulatedStream stream = {schedule_of(argv[10]), {}};
  launch_silu_and_mul_quant_fp8(p, &stream);
  std::ofstream(argv[12], std::ios::binary)
      .write(reinterpret_cast<char*>(p.q), static_cast<std::streamsize>(q_bytes));
  std::ofstream(argv[13], std::ios::binary)
      .write(reinterpret_cast<char*>(p.sf), static_cast<std::streamsize>(sf_bytes));
  std::printf("%s\n", stream.report.ok() ? "right" : stream.report.text.c_str());
  return 0;
}
