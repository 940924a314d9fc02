// Runs one of the kernels with a planted bug under one schedule and says what was found:
//   bugs <kernel> <bug> <schedule: eager, lazy or a seed>
// Prints "right", "wrong result" or the report.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/hopper/launch.h"
#include "exchange.h"
#include "flags.h"
#include "pipeline.h"
#include "schedule.h"

namespace {

using namespace moela;

[[noreturn]] void finish(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::exit(0);
}

void finish_run(const emu::Report& report, bool is_right) {
  if (!report.ok()) finish(report.text);
  finish(is_right ? "right" : "wrong result");
}

template <class T>
T* upload(const std::vector<T>& host) {
  auto* device = static_cast<T*>(emu::allocate(host.size() * sizeof(T)));
  emu::copy_to(device, host.data(), host.size() * sizeof(T));
  return device;
}

cuda::TensorSpec matrix(void* base, cuda::ElementType type, int rows, int columns, uint32_t box_rows,
                        uint32_t box_columns, cuda::Swizzle swizzle) {
  return {.base = base,
          .type = type,
          .rank = 2,
          .dims = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)},
          .stride_bytes = {static_cast<uint64_t>(columns) * cuda::element_bytes(type)},
          .box = {box_columns, box_rows},
          .swizzle = swizzle};
}

void run_pipeline(Bug bug, cuda::EmulatedStream stream) {
  constexpr int M = 128, N = 192, K = 512, kBlocks = K / 128;
  std::mt19937 random(7);
  auto code = [&] {  // magnitudes up to 15: no NaN, and sums stay well inside the accumulator
    return static_cast<uint8_t>((random() % 2 << 7) | random() % 0x58);
  };
  std::vector<uint8_t> a(M * K), b(N * K);
  std::vector<float> sf(kBlocks * M);
  for (uint8_t& x : a) x = code();
  for (uint8_t& x : b) x = code();
  for (float& x : sf) x = 0.5f + static_cast<float>(random() % 1000) / 1000.f;
  auto* d = static_cast<uint16_t*>(emu::allocate(M * N * 2));

  using cuda::ElementType, cuda::Swizzle;
  using C = PipelineConfig;
  PipelineParams p = {.a = {}, .b = {}, .sf_a = {}, .d = {}, .M = M, .N = N, .K = K, .bug = bug};
  const uint32_t box_k = bug == Bug::kBoxWiderThanSwizzle ? 256 : C::kK,
                 sf_rows = bug == Bug::kBoxTooTall ? 2 : 1;
  const int rows = bug == Bug::kMapOutsideAllocation ? M + 64 : M;
  for (const std::string& refusal :
       {encode_tensor_map(&p.a,
                          matrix(upload(a), ElementType::kUint8, rows, K, C::kM, box_k, Swizzle::k128B)),
        encode_tensor_map(&p.b,
                          matrix(upload(b), ElementType::kUint8, N, K, C::kN / 2, C::kK, Swizzle::k128B)),
        encode_tensor_map(
            &p.sf_a, matrix(upload(sf), ElementType::kFloat32, kBlocks, M, sf_rows, C::kM, Swizzle::kNone)),
        encode_tensor_map(&p.d, matrix(d, ElementType::kBFloat16, M, N, C::kM, C::kN, Swizzle::k128B))})
    if (!refusal.empty()) finish("refused: " + refusal);

  const cuda::LaunchShape shape = {
      .grid = M / C::kM,
      .block = C::kThreads,
      .cluster = C::kCluster,
      .smem_bytes = bug == Bug::kTooLittleSharedMemory ? C::kFull : C::kSmemBytes};
  launch(shape, &stream, &pipeline_kernel, p);

  // |error| <= rounding of the output + what the fp8 accumulator may lose (docs: design, numerics).
  bool is_right = true;
  for (int m = 0; m < M && stream.report.ok(); ++m)
    for (int n = 0; n < N; ++n) {
      double exact = 0, magnitude = 0;
      for (int k = 0; k < K; ++k) {
        const double product = static_cast<double>(emu::float_of_e4m3(a[m * K + k])) *
                               emu::float_of_e4m3(b[n * K + k]) * sf[k / 128 * M + m];
        exact += product;
        magnitude += std::fabs(product);
      }
      const double error = std::fabs(emu::float_of_bf16(d[m * N + n]) - exact);
      is_right &= error <= std::fabs(exact) * 0x1p-8 + magnitude * 0x1p-11;
    }
  finish_run(stream.report, is_right);
}

void run_exchange(Bug bug, cuda::EmulatedStream stream) {
  constexpr int kBlocks = 8, kThreads = ExchangeConfig::kThreads, kCluster = ExchangeConfig::kCluster;
  std::vector<uint32_t> source(kThreads);
  for (int i = 0; i < kThreads; ++i) source[i] = static_cast<uint32_t>(7 * i);
  auto* out = static_cast<uint32_t*>(emu::allocate(kBlocks * 3 * kThreads * 4));
  launch({.grid = kBlocks, .block = kThreads, .cluster = kCluster, .smem_bytes = ExchangeConfig::kSmemBytes},
         &stream, &exchange_kernel, ExchangeParams{upload(source), out, bug});
  bool is_right = true;
  for (int b = 0; b < kBlocks; ++b)
    for (int t = 0; t < kThreads; ++t) {
      const uint32_t* got = out + b * 3 * kThreads + t;
      is_right &= got[0] == static_cast<uint32_t>((b + 1) % kCluster * 1000 + t);
      is_right &= got[kThreads] == source[t] && got[2 * kThreads] == ExchangeConfig::kRounds;
    }
  finish_run(stream.report, is_right);
}

// Two ranks with two blocks each: the chain goes through both.
void run_flags(Bug bug, cuda::EmulatedStream stream) {
  constexpr int kRanks = 2, kBlocks = 2, kRows = kRanks * kBlocks, kThreads = FlagsConfig::kThreads;
  auto* data = static_cast<uint32_t*>(emu::allocate((kRows + 1) * kThreads * 4));
  emu::fill(data, 0, kThreads * 4);
  std::vector<uint32_t> zeros(kRows + 1, 0);
  zeros[0] = 1;
  uint32_t* flag = upload(zeros);
  uint32_t* count = upload(std::vector<uint32_t>(2, 0));
  std::vector<emu::Grid> grids;
  for (int rank = 0; rank < kRanks; ++rank) {
    const FlagsParams p = {data, flag, count, rank * kBlocks, bug};
    grids.push_back({{.grid = kBlocks,
                      .block = kThreads,
                      .smem_bytes = FlagsConfig::kSmemBytes,
                      .overlaps_previous = true},
                     [p] { flags_kernel(p); }});
  }
  const emu::Report report = emu::run(grids, stream.options);
  bool is_right = *count == kRows;
  for (int row = 0; row <= kRows; ++row)
    for (int t = 0; t < kThreads; ++t) is_right &= data[row * kThreads + t] == static_cast<uint32_t>(row);
  finish_run(report, is_right);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {  // lists the bugs
    for (const std::string_view name : kBugNames) std::printf("%s\n", std::string(name).c_str());
    return 0;
  }
  const std::string kernel = argv[1], name = argv[2];
  const cuda::EmulatedStream stream = {schedule_of(argv[3]), {}};
  int bug = 0;
  while (kBugNames[bug] != name) ++bug;
  if (kernel == "pipeline") run_pipeline(static_cast<Bug>(bug), stream);
  if (kernel == "exchange") run_exchange(static_cast<Bug>(bug), stream);
  if (kernel == "flags") run_flags(static_cast<Bug>(bug), stream);
  return 1;
}
