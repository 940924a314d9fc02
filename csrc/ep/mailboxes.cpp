#include "ep/mailboxes.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <ctime>
#include <new>
#include <thread>

namespace moela::ep {
namespace {

// A peer that is at work on another core answers within microseconds; to sleep and be woken costs 5 to 50.
constexpr int kSpins = 200;   // some microseconds
constexpr int kYields = 100;  // 20 to 100 microseconds, which a peer on this core can use

// Whether `word` has come to `epoch`. Signed, so that it also holds where epochs wrap.
bool reached(uint64_t word, uint64_t epoch) { return static_cast<int64_t>(word - epoch) >= 0; }

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Not FUTEX_PRIVATE: the ranks are processes. To return early does no harm.
void futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* timeout) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, timeout, nullptr, 0);
}

bool has_core_for_each(int num_ranks) {
  static const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return cores >= num_ranks;
}

}  // namespace

int64_t Mailboxes::bytes(int num_ranks) {
  return num_ranks * static_cast<int64_t>(sizeof(Member) + num_ranks * sizeof(Mailbox));
}

Mailboxes::Mailboxes(void* memory, int num_ranks, int rank)
    : members_(static_cast<Member*>(memory)),
      mailboxes_(reinterpret_cast<Mailbox*>(members_ + num_ranks)),
      num_ranks_(num_ranks),
      rank_(rank) {}

void Mailboxes::join(uint64_t first) {
  new (&member(rank_)) Member{};
  member(rank_).released.store(first - 1, std::memory_order_relaxed);
  for (int to = 0; to < num_ranks_; ++to)
    (new (&mailbox(rank_, to)) Mailbox{})->posted.store(first - 1, std::memory_order_relaxed);
}

void Mailboxes::post(const Header& header, const int32_t* counts) {
  const uint64_t epoch = header.epoch;
  // Each rank begins with the next one, so that not all wake the same one first.
  for (int step = 1; step <= num_ranks_; ++step) {
    const int to = (rank_ + step) % num_ranks_;
    Mailbox& box = mailbox(rank_, to);
    Header& mine = box.headers[epoch % kHeaders];
    mine = header;
    mine.count = counts[to];
    box.posted.store(epoch);  // after header and rows; pairs with await_posts
    ring(to);
  }
}

uint64_t Mailboxes::await_posts(uint64_t epoch, double seconds) {
  // Pairs with post: header and rows of `from` are visible.
  return wait(seconds, [&](int from) { return !reached(mailbox(from, rank_).posted.load(), epoch); });
}

void Mailboxes::read_counts(uint64_t epoch, int32_t* counts) const {
  Header mine = header(rank_, epoch);
  for (int from = 0; from < num_ranks_; ++from) {
    const Header& theirs = header(from, epoch);
    mine.count = theirs.count;
    const bool agrees = !theirs.is_abort && std::memcmp(&mine, &theirs, sizeof(Header)) == 0;
    counts[from] = agrees ? static_cast<int32_t>(theirs.count) : -1;
  }
}

void Mailboxes::read_headers(uint64_t epoch, Header* headers) const {
  for (int from = 0; from < num_ranks_; ++from) headers[from] = header(from, epoch);
}

void Mailboxes::release(uint64_t epoch) {
  member(rank_).released.store(epoch);  // after the reads; pairs with await_releases
  for (int rank = 0; rank < num_ranks_; ++rank) ring(rank);
}

uint64_t Mailboxes::await_releases(uint64_t epoch, double seconds) {
  // Pairs with release: what this rank writes next is not read by the epoch that was released.
  return wait(seconds, [&](int rank) { return !reached(member(rank).released.load(), epoch); });
}

void Mailboxes::leave(int suspect) {
  member(rank_).suspect.store(static_cast<uint32_t>(suspect + 1), std::memory_order_relaxed);
  member(rank_).has_left.store(1);  // after suspect and every post; pairs with has_left
  for (int rank = 0; rank < num_ranks_; ++rank) ring(rank);
}

bool Mailboxes::has_left(int rank) const { return member(rank).has_left.load() != 0; }

int Mailboxes::suspect_of(int rank) const {
  return static_cast<int>(member(rank).suspect.load(std::memory_order_relaxed)) - 1;
}

bool Mailboxes::has_left_any(uint64_t ranks) const {
  for (int rank = 0; rank < num_ranks_; ++rank)
    if (ranks >> rank & 1 && has_left(rank)) return true;
  return false;
}

void Mailboxes::ring(int rank) {
  Member& peer = member(rank);
  if (!peer.is_asleep.load()) return;
  peer.bell.fetch_add(1);
  futex(peer.bell, FUTEX_WAKE, 1, nullptr);
}

// Sleeps until a word changes, or for `seconds`. In the single order of seq_cst operations either the store
// of is_asleep comes before the load in ring(), which then rings, or the word was stored before it is looked
// at here. A bell that rings in between has another value than was heard, and the kernel does not sleep.
template <class Missing>
void Mailboxes::sleep(double seconds, Missing missing) {
  Member& me = member(rank_);
  const auto ns = static_cast<int64_t>(seconds * 1e9);
  const timespec timeout = {.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  me.is_asleep.store(1);
  const uint32_t heard = me.bell.load();
  const uint64_t ranks = missing();
  if (ranks != 0 && !has_left_any(ranks)) futex(me.bell, FUTEX_WAIT, heard, &timeout);
  me.is_asleep.store(0);
}

template <class IsMissing>
uint64_t Mailboxes::wait(double seconds, IsMissing is_missing) {
  using Clock = std::chrono::steady_clock;
  const auto missing = [&] {
    uint64_t ranks = 0;
    for (int rank = 0; rank < num_ranks_; ++rank) ranks |= uint64_t{is_missing(rank)} << rank;
    return ranks;
  };
  const int spins = has_core_for_each(num_ranks_) ? kSpins : 0;
  const auto start = Clock::now();
  for (int turn = 0;; ++turn) {
    const uint64_t ranks = missing();
    if (ranks == 0) return 0;
    if (has_left_any(ranks)) return missing();  // what a rank posted before it left is visible now
    if (turn < spins) {
      relax();
    } else if (turn < spins + kYields) {
      sched_yield();
    } else {
      const double left = seconds - std::chrono::duration<double>(Clock::now() - start).count();
      if (left <= 0) return ranks;
      sleep(left, missing);
    }
  }
}

}  // namespace moela::ep

// For moela.ep.transports.shm, through ctypes: one build serves every Python (docs/adr/0002), and a call
// gives up the GIL.
#define MOELA_EXPORT extern "C" __attribute__((visibility("default")))
using moela::ep::Header;
using moela::ep::Mailboxes;

MOELA_EXPORT int64_t moela_ep_bytes(int num_ranks) { return Mailboxes::bytes(num_ranks); }
MOELA_EXPORT void moela_ep_join(void* memory, int num_ranks, int rank, uint64_t first) {
  Mailboxes(memory, num_ranks, rank).join(first);
}
MOELA_EXPORT void moela_ep_post(void* memory, int num_ranks, int rank, const Header* header,
                                const int32_t* counts) {
  Mailboxes(memory, num_ranks, rank).post(*header, counts);
}
MOELA_EXPORT uint64_t moela_ep_await_counts(void* memory, int num_ranks, int rank, uint64_t epoch,
                                            double seconds, int32_t* counts) {
  Mailboxes boxes(memory, num_ranks, rank);
  const uint64_t missing = boxes.await_posts(epoch, seconds);
  if (missing == 0) boxes.read_counts(epoch, counts);
  return missing;
}
MOELA_EXPORT void moela_ep_read_headers(void* memory, int num_ranks, int rank, uint64_t epoch,
                                        Header* headers) {
  Mailboxes(memory, num_ranks, rank).read_headers(epoch, headers);
}
MOELA_EXPORT void moela_ep_release(void* memory, int num_ranks, int rank, uint64_t epoch) {
  Mailboxes(memory, num_ranks, rank).release(epoch);
}
MOELA_EXPORT uint64_t moela_ep_await_releases(void* memory, int num_ranks, int rank, uint64_t epoch,
                                              double seconds) {
  return Mailboxes(memory, num_ranks, rank).await_releases(epoch, seconds);
}
MOELA_EXPORT void moela_ep_leave(void* memory, int num_ranks, int rank, int suspect) {
  Mailboxes(memory, num_ranks, rank).leave(suspect);
}
MOELA_EXPORT int moela_ep_has_left(void* memory, int num_ranks, int rank) {
  return Mailboxes(memory, num_ranks, rank).has_left(rank);
}
MOELA_EXPORT int moela_ep_suspect_of(void* memory, int num_ranks, int rank) {
  return Mailboxes(memory, num_ranks, rank).suspect_of(rank);
}
