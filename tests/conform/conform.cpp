// Dumps what the primitives of hopper.h really do, on a GPU (nvcc -x cu) or under the emulator (g++):
//   conform <folder> [schedule [mutant of the emulator [threads | copies | maps | mma]]]
// judge.py prepares <folder>/in and judges the dumps.
#include <string>

#include "copies.h"
#include "maps.h"
#include "mma.h"
#include "threads.h"

#ifdef MOELA_EMULATE
#include "schedule.h"
#endif

int main(int argc, char** argv) {
  if (argc < 2) conform::stop("usage: conform <folder> [schedule]");
#ifdef MOELA_EMULATE
  moela::cuda::EmulatedStream emulated = {schedule_of(argc > 2 ? argv[2] : "lazy"), {}};
#ifdef EMU_MUTATE
  moela::emu::mutant = argc > 3 ? std::stoi(argv[3]) : 0;
#endif
  const conform::Device device(argv[1], &emulated);
#else
  const conform::Device device(argv[1], nullptr);
#endif
  const std::string only = argc > 4 ? argv[4] : "";
  const auto wanted = [&](const char* part) { return only.empty() || only == part; };
  if (wanted("threads")) conform::run_threads(device);
  if (wanted("copies")) conform::run_copies(device);
  if (wanted("maps")) conform::run_maps(device);
  if (wanted("mma")) conform::run_mma(device);
  return 0;
}
