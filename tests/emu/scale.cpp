// An exchange of the size of an all-to-all: 8 ranks x 4 blocks x 384 threads, every block sends to every
// rank.
//   scale <schedule>
#include <cstdio>
#include <vector>

#include "cuda/hopper/hopper.h"
#include "schedule.h"

namespace {

using namespace moela;
using namespace moela::cuda::sm90;

constexpr int kRanks = 8, kBlocks = 4, kThreads = 384;

// buffers[r]: [kRanks, kBlocks, kThreads] received by rank r; counts[r]: how many blocks have sent to it.
struct Mailboxes {
  uint32_t* buffers[kRanks];
  uint32_t* counts[kRanks];
};

void exchange(const Mailboxes& mail, int rank, uint64_t* sum) {
  for (int to = 0; to < kRanks; ++to) {
    stg(mail.buffers[to] + (rank * kBlocks + block()) * kThreads + tid(),
        static_cast<uint32_t>(rank + tid()));
    sync_block();
    if (tid() == 0) red_add_release<Scope::kSys>(mail.counts[to], 1u);
  }
  if (tid() == 0) wait_flag_at_least<Scope::kSys>(mail.counts[rank], static_cast<uint32_t>(kRanks * kBlocks));
  sync_block();
  uint64_t mine = 0;
  for (int from = 0; from < kRanks; ++from)
    mine += ldg(mail.buffers[rank] + (from * kBlocks + block()) * kThreads + tid());
  stg(sum + block() * kThreads + tid(), mine);
}

}  // namespace

int main(int, char** argv) {
  Mailboxes mail;
  uint64_t* sums[kRanks];
  for (int r = 0; r < kRanks; ++r) {
    mail.buffers[r] = static_cast<uint32_t*>(emu::allocate(kRanks * kBlocks * kThreads * 4));
    mail.counts[r] = static_cast<uint32_t*>(emu::allocate(4));
    emu::fill(mail.counts[r], 0, 4);
    sums[r] = static_cast<uint64_t*>(emu::allocate(kBlocks * kThreads * 8));
  }
  std::vector<emu::Grid> grids;
  for (int r = 0; r < kRanks; ++r)
    grids.push_back({{.grid = kBlocks, .block = kThreads}, [&, r] { exchange(mail, r, sums[r]); }});
  const emu::Report report = emu::run(grids, schedule_of(argv[1]));
  bool is_right = report.ok();
  for (int r = 0; r < kRanks; ++r)
    for (int i = 0; i < kBlocks * kThreads; ++i)
      is_right &= sums[r][i] == static_cast<uint64_t>(kRanks * (kRanks - 1) / 2 + kRanks * (i % kThreads));
  std::printf("%s\n", !report.ok() ? report.text.c_str() : is_right ? "right" : "wrong result");
  return 0;
}
