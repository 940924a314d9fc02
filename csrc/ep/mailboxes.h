// The words by which the ranks of one host hand each other memory: who has posted which epoch to whom, who
// has released it, who has left. They lie in memory that all ranks map. The rows lie elsewhere and are plain
// memory: what orders accesses to them is here.
//
// An epoch of a source s and a destination d:
//   s: await_releases(epoch - 2)   every rank has read what lies where the rows of this epoch go
//   s: writes rows                 plain stores
//   s: post(header, counts)        stores posted; pairs with d's load of it: d sees the rows
//   d: await_posts(epoch), read_counts(epoch)
//   d: reads rows
//   d: release(epoch)              stores released; pairs with the load of it by every source in
//                                  await_releases(epoch): its next stores there come after d's reads
// The rows need release and acquire; the words are seq_cst because of sleepers, see sleep().
//
// Words only grow and are compared with >=: a rank that looks late finds a larger one, and is not stuck. With
// two epochs of a rank under way at most the rows need two places. The headers need four, because one that
// gives an epoch up is posted without a wait: when a source posts epoch e, it has received e - 2, which d
// sent when it had received e - 4. So d may yet read e - 3.
//
// Waiting: a while in user space, then asleep in the kernel, until the bell that whoever changes a word rings
// for each sleeper. A wait ends after `seconds` at the latest and says who is missing: it is the caller who
// knows deadlines and processes.
//
// Linux only. No torch, no Python; whoever calls owns the memory. Ranks may be processes or threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace moela::ep {

constexpr int kMaxRanks = 64;  // a set of ranks is a word
constexpr int kTextBytes = 224;
constexpr int kHeaders = 4;  // a power of two, so that epochs may wrap
constexpr int kLineBytes = 64;

// What a rank says of an epoch: Header of python/moela/ep/transports/base.py.
struct Header {
  uint64_t epoch;
  int64_t count;
  int64_t row_bytes;
  int64_t is_abort;
  char text[kTextBytes];
};
static_assert(sizeof(Header) == 256, "headers are compared and read as bytes");

// From one source to one destination. The source writes.
struct alignas(kLineBytes) Mailbox {
  std::atomic<uint64_t> posted;  // the latest epoch
  alignas(kLineBytes) Header headers[kHeaders];
};

// Of one rank, which writes all of it but the bell.
struct alignas(kLineBytes) Member {
  std::atomic<uint64_t> released;  // the latest epoch
  std::atomic<uint32_t> has_left;
  std::atomic<uint32_t> suspect;  // 1 + the rank for which this one has waited in vain, or 0
  alignas(kLineBytes) std::atomic<uint32_t> bell;
  std::atomic<uint32_t> is_asleep;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
              "a lock inside an atomic would not be shared between processes");
static_assert(sizeof(std::atomic<uint32_t>) == 4, "the kernel waits on the word itself");

// A rank's view. Holds no state of its own: one may be made for each call.
class Mailboxes {
 public:
  static int64_t bytes(int num_ranks);

  // memory: bytes(num_ranks), on a cache line, zero before the first rank joins.
  Mailboxes(void* memory, int num_ranks, int rank);

  // Before anyone calls anything else: the caller sees to it that all have joined. The first epoch that will
  // be posted is `first`.
  void join(uint64_t first);

  // This header to each rank, with the count for it, [num_ranks]. Never waits. Epochs of one source go up by
  // one.
  void post(const Header& header, const int32_t* counts);
  // The bit set of the ranks whose post of this epoch is missing: 0, or what it is after `seconds`, or as
  // soon as one of them has left.
  uint64_t await_posts(uint64_t epoch, double seconds);
  // Between await_posts(epoch) and release(epoch): the count from each rank, [num_ranks]; -1 where the header
  // is that of an abort, or differs from this rank's own in more than the count.
  void read_counts(uint64_t epoch, int32_t* counts) const;
  // As read_counts: the headers themselves, [num_ranks].
  void read_headers(uint64_t epoch, Header* headers) const;

  void release(uint64_t epoch);
  // The same of the ranks that have not released this epoch.
  uint64_t await_releases(uint64_t epoch, double seconds);

  // This rank will not call again. suspect: the rank whose lateness is the reason, or -1.
  void leave(int suspect);
  bool has_left(int rank) const;
  int suspect_of(int rank) const;

 private:
  Member& member(int rank) const { return members_[rank]; }
  Mailbox& mailbox(int from, int to) const { return mailboxes_[from * num_ranks_ + to]; }
  const Header& header(int from, uint64_t epoch) const {
    return mailbox(from, rank_).headers[epoch % kHeaders];
  }
  void ring(int rank);
  bool has_left_any(uint64_t ranks) const;
  template <class Missing>
  void sleep(double seconds, Missing missing);
  template <class IsMissing>
  uint64_t wait(double seconds, IsMissing is_missing);

  Member* members_;
  Mailbox* mailboxes_;
  int num_ranks_;
  int rank_;
};

}  // namespace moela::ep
