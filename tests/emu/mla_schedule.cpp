// The CUDA mla_schedule on the host: mla_schedule <B> <rows> <parts> <batch invariant> <schedule> <folder>
// Reads seqlens from the folder, writes schedule there, prints "right" or the report.
#include <iostream>
#include <string>

#include "cuda/mla_schedule/mla_schedule_sm90.cuh"
#include "files.h"
#include "schedule.h"

int main(int, char** argv) {
  using namespace moela;
  const auto number = [&](int i) { return std::stoi(argv[i]); };
  const std::string folder = std::string(argv[6]) + "/";
  cuda::MlaScheduleParams p = {.seqlens = static_cast<const int32_t*>(load(folder + "seqlens")),
                               .B = number(1),
                               .rows = number(2),
                               .num_parts = number(3),
                               .batch_invariant = number(4) != 0,
                               .schedule = nullptr};
  const auto bytes = static_cast<size_t>(plan::mla_schedule_rows(p.B, p.num_parts)) * 16;
  p.schedule = static_cast<int32_t*>(poisoned(bytes));
  cuda::EmulatedStream stream = {schedule_of(argv[5]), {}};
  cuda::launch_mla_schedule(p, &stream);
  save(folder + "schedule", p.schedule, bytes);
  std::cout << (stream.report.ok() ? "right" : stream.report.text) << "\n";
  return 0;
}
