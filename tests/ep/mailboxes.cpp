// Threads as ranks: mailboxes <ranks> <epochs> <first epoch> <deadline> <seed>. Built with ThreadSanitizer,
// which sees the rows, plain memory, and knows of no order between the threads but that of the mailboxes.
#include "ep/mailboxes.h"

#include <sched.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

using moela::ep::Header;
using moela::ep::Mailboxes;

constexpr int kMaxRows = 64;
constexpr uint32_t kPoison = 0x7FC00000;  // a float32 NaN

uint32_t row(uint64_t epoch, int from, int to, int i) {
  return static_cast<uint32_t>(epoch * 7919 + static_cast<uint64_t>(from * 1009 + to * 101 + i)) & 0x3FFFFFFF;
}

void require(bool holds, const char* what, int rank, uint64_t epoch) {
  if (holds) return;
  std::fprintf(stderr, "rank %d, epoch %" PRIu64 ": %s\n", rank, epoch, what);
  std::_Exit(1);
}

class Rank {
 public:
  Rank(void* memory, std::vector<uint32_t>& rows, int num_ranks, int rank, double deadline, uint64_t seed)
      : boxes_(memory, num_ranks, rank),
        rows_(rows),
        num_ranks_(num_ranks),
        rank_(rank),
        deadline_(deadline),
        random_(seed) {}

  void join(uint64_t first) { boxes_.join(first); }

  // Every rank has to send the same number of epochs ahead of what it receives, or none; which, is random.
  void run(uint64_t first, uint64_t epochs) {
    for (uint64_t done = 0; done < epochs;) {
      const uint64_t ahead = done + 1 < epochs && random_() % 2 ? 2 : 1;
      for (uint64_t i = 0; i < ahead; ++i) send(first + done + i);
      for (uint64_t i = 0; i < ahead; ++i) receive(first + done + i);
      done += ahead;
    }
    boxes_.leave(-1);
  }

 private:
  uint32_t* place(uint64_t epoch, int from, int to) {
    const uint64_t index = (epoch % 2 * num_ranks_ + to) * num_ranks_ + from;
    return rows_.data() + index * kMaxRows;
  }

  void jitter() {
    const auto kind = random_() % 16;
    if (kind < 4) sched_yield();
    if (kind == 4) usleep(random_() % 300);
  }

  void send(uint64_t epoch) {
    jitter();
    const bool is_abort = random_() % 16 == 0;
    if (!is_abort) require(boxes_.await_releases(epoch - 2, deadline_) == 0, "no release", rank_, epoch);
    std::vector<int32_t> counts(num_ranks_);
    for (int to = 0; to < num_ranks_; ++to) {
      counts[to] = is_abort ? 0 : static_cast<int32_t>(random_() % (kMaxRows + 1));
      for (int i = 0; i < counts[to]; ++i) place(epoch, rank_, to)[i] = row(epoch, rank_, to, i);
      jitter();
    }
    boxes_.post({.epoch = epoch, .count = 0, .row_bytes = 4, .is_abort = is_abort, .text = "rows"},
                counts.data());
  }

  void receive(uint64_t epoch) {
    jitter();
    require(boxes_.await_posts(epoch, deadline_) == 0, "no post", rank_, epoch);
    std::vector<Header> headers(num_ranks_);
    std::vector<int32_t> counts(num_ranks_);
    boxes_.read_headers(epoch, headers.data());
    boxes_.read_counts(epoch, counts.data());
    for (int from = 0; from < num_ranks_; ++from) {
      const Header& header = headers[from];
      require(header.epoch == epoch, "the header is of another epoch", rank_, epoch);
      const bool is_void = header.is_abort || headers[rank_].is_abort;
      require(counts[from] == (is_void ? -1 : header.count), "wrong count", rank_, epoch);
      for (int i = 0; i < header.count; ++i) {
        require(place(epoch, from, rank_)[i] == row(epoch, from, rank_, i), "wrong row", rank_, epoch);
        place(epoch, from, rank_)[i] = kPoison;  // so that a row that nobody wrote again is found
      }
    }
    jitter();
    boxes_.release(epoch);
  }

  Mailboxes boxes_;
  std::vector<uint32_t>& rows_;
  int num_ranks_;
  int rank_;
  double deadline_;
  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int num_ranks = std::atoi(argv[1]);
  const uint64_t epochs = std::strtoull(argv[2], nullptr, 10), first = std::strtoull(argv[3], nullptr, 10);
  const double deadline = std::atof(argv[4]);
  const uint64_t seed = std::strtoull(argv[5], nullptr, 10);
  const auto bytes = static_cast<size_t>(Mailboxes::bytes(num_ranks));
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(64, bytes), std::free);
  std::memset(memory.get(), 0, bytes);
  std::vector<uint32_t> rows(2 * num_ranks * num_ranks * kMaxRows, kPoison);

  std::vector<Rank> ranks;
  for (int rank = 0; rank < num_ranks; ++rank)
    ranks.emplace_back(memory.get(), rows, num_ranks, rank, deadline, seed * 100 + rank);
  for (Rank& rank : ranks) rank.join(first);
  std::vector<std::thread> threads;
  for (Rank& rank : ranks) threads.emplace_back([&] { rank.run(first, epochs); });
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < num_ranks; ++rank)
    require(Mailboxes(memory.get(), num_ranks, 0).has_left(rank), "has not left", rank, 0);
  std::puts("ok");
}
