// Runs one of the kernels with a planted bug under one schedule and says what was found:
//   bugs <kernel> <bug> <schedule: eager, lazy or a seed>
// Prints "right", "wrong result" or the report.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "attention.h"
#include "edited_maps.h"
#include "exchange.h"
#include "flags.h"
#include "host.h"
#include "pipeline.h"
#include "reduction.h"
#include "schedule.h"

namespace {

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
  const uint32_t box_k = bug == Bug::kBoxWiderThanSwizzle ? 256 : C::kK,
                 sf_rows = bug == Bug::kBoxTooTall ? 2 : 1;
  const int rows = bug == Bug::kMapOutsideAllocation ? M + 64 : M;
  const PipelineParams p = {
      .a = encoded(matrix(upload(a), ElementType::kUint8, rows, K, C::kM, box_k, Swizzle::k128B)),
      .b = encoded(matrix(upload(b), ElementType::kUint8, N, K, C::kN / 2, C::kK, Swizzle::k128B)),
      .sf_a = encoded(matrix(upload(sf), ElementType::kFloat32, kBlocks, M, sf_rows, C::kM, Swizzle::kNone)),
      .d = encoded(matrix(d, ElementType::kBFloat16, M, N, C::kM, C::kN, Swizzle::k128B)),
      .M = M,
      .N = N,
      .K = K,
      .bug = bug};
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

void run_attention(Bug bug, cuda::EmulatedStream stream) {
  constexpr int kKeys = 128, kDim = 64, kQueries = 64;
  std::mt19937 random(3);
  auto small_numbers = [&](int count) {  // all products and sums are exact
    std::vector<int> numbers(count);
    for (int& x : numbers) x = static_cast<int>(random() % 5) - 2;
    return numbers;
  };
  const auto q = small_numbers(kQueries * kDim), k = small_numbers(kKeys * kDim),
             v = small_numbers(kKeys * kDim);
  const auto tiles = [](const std::vector<int>& x) {
    std::vector<uint16_t> bits;
    for (const int value : x) bits.push_back(emu::bf16_of_float(static_cast<float>(value)));
    return encoded(matrix(upload(bits), cuda::ElementType::kBFloat16, static_cast<int>(x.size()) / kDim, kDim,
                          64, 64, cuda::Swizzle::k128B));
  };
  auto* out = static_cast<float*>(emu::allocate(kQueries * kDim * 4));
  launch({.grid = 1, .block = AttentionConfig::kThreads, .smem_bytes = AttentionConfig::kSmemBytes}, &stream,
         &attention_kernel, AttentionParams{tiles(q), tiles(k), tiles(v), out, bug});
  bool is_right = true;
  for (int m = 0; m < kQueries; ++m) {
    std::vector<int> row(kDim, 0);
    for (int n = 0; n < kKeys; ++n) {
      int score = 0;
      for (int d = 0; d < kDim; ++d) score += q[m * kDim + d] * k[n * kDim + d];
      for (int d = 0; d < kDim; ++d) row[d] += score * v[n * kDim + d];
    }
    for (int d = 0; d < kDim; ++d) is_right &= out[m * kDim + d] == static_cast<float>(row[d]);
  }
  finish_run(stream.report, is_right);
}

void run_reduction(Bug bug, cuda::EmulatedStream stream) {
  constexpr int kBlocks = 4, kCount = ReductionConfig::kRows * ReductionConfig::kColumns;
  auto* sum = static_cast<float*>(emu::allocate(kCount * 4));
  auto* copy = static_cast<float*>(emu::allocate(kCount * 4));
  auto* done = static_cast<uint32_t*>(emu::allocate(4));
  if (bug != Bug::kSumNotZeroed) emu::fill(sum, 0, kCount * 4);
  if (bug != Bug::kCounterNotZeroed) emu::fill(done, 0, 4);
  const auto tile =
      encoded(matrix(sum, cuda::ElementType::kFloat32, ReductionConfig::kRows, ReductionConfig::kColumns,
                     ReductionConfig::kRows, ReductionConfig::kColumns, cuda::Swizzle::kNone));
  launch({.grid = kBlocks, .block = ReductionConfig::kThreads, .smem_bytes = ReductionConfig::kSmemBytes},
         &stream, &reduction_kernel, ReductionParams{tile, sum, copy, done, bug});
  bool is_right = true;
  for (int i = 0; i < kCount; ++i) is_right &= copy[i] == 1 + 2 + 3 + 4;
  finish_run(stream.report, is_right);
}

void run_edited_maps(Bug bug, cuda::EmulatedStream stream) {
  using C = EditedMapsConfig;
  const std::vector<int> offsets = {0, 20, 20, 29, 30, 53, 60, 76};
  const int num_groups = static_cast<int>(offsets.size()) - 1, num_rows = offsets.back(), kBlocks = 2;
  std::vector<float> x(static_cast<size_t>(num_rows) * C::kColumns);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 97);
  float* rows = upload(x);
  const auto map = encoded(matrix(rows, cuda::ElementType::kFloat32, num_rows, C::kColumns, C::kBoxRows,
                                  C::kColumns, cuda::Swizzle::kNone));
  auto* sums = static_cast<float*>(emu::allocate(num_groups * C::kColumns * 4));
  launch({.grid = kBlocks, .block = C::kThreads, .smem_bytes = C::kSmemBytes}, &stream, &edited_maps_kernel,
         EditedMapsParams{map, rows, upload(offsets), upload(std::vector(kBlocks + 1, map)), sums, num_groups,
                          bug});
  bool is_right = true;
  for (int g = 0; g < num_groups; ++g)
    for (int c = 0; c < C::kColumns; ++c) {
      float sum = 0;
      for (int row = offsets[g]; row < offsets[g + 1]; ++row) sum += x[row * C::kColumns + c];
      is_right &= sums[g * C::kColumns + c] == sum;
    }
  finish_run(stream.report, is_right);
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
  if (kernel == "attention") run_attention(static_cast<Bug>(bug), stream);
  if (kernel == "reduction") run_reduction(static_cast<Bug>(bug), stream);
  if (kernel == "edited_maps") run_edited_maps(static_cast<Bug>(bug), stream);
  if (kernel == "flags") run_flags(static_cast<Bug>(bug), stream);
  return 1;
}
