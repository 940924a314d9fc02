// The symmetric memory of expert parallelism, of the same form on every rank: what peers write there, and
// where.
#pragma once

#include <cstdint>

namespace moela::cuda {

// What a source says of its rows of an epoch.
struct alignas(16) EpHeader {
  uint32_t count;
  uint32_t row_bytes;
  uint32_t kind;      // what the rows are: a number that the ranks have to agree on
  uint32_t is_abort;  // the source has given this epoch up: there are no rows
};

// All of it is zero before the first epoch, which is 1. In this order, as offsets in bytes:
//   arrived   uint64 [num_ranks]: by source, the last epoch whose rows are here
//   released  uint64 [num_ranks]: by destination, the last epoch whose rows it does not need any more
//   headers   EpHeader [2, num_ranks]: by parity of the epoch, and source
//   rows      [2, num_ranks, max_tokens, max_row_bytes]: likewise; shorter rows are packed
// Flags only rise. A source sends epoch e when the destination has released e - 2, so what is stored by
// parity is that of e until it is released, however far the source's flag has risen.
struct EpMemory {
  uint8_t* const* bases;  // [num_ranks], of every rank's memory; at multiples of 128
  int rank;
  int num_ranks;
  int max_tokens;         // rows from one rank to another in an epoch
  int64_t max_row_bytes;  // a multiple of 16

  constexpr int64_t arrived_at(int source) const { return int64_t{8} * source; }
  constexpr int64_t released_at(int destination) const { return int64_t{8} * (num_ranks + destination); }
  constexpr int64_t header_at(uint64_t epoch, int source) const {
    return int64_t{16} * (num_ranks + slot_of(epoch, source));
  }
  constexpr int64_t rows_at(uint64_t epoch, int source) const {
    return (int64_t{48} * num_ranks + 127) / 128 * 128 + slot_of(epoch, source) * max_tokens * max_row_bytes;
  }
  constexpr int64_t bytes() const { return rows_at(1, num_ranks); }

 private:
  constexpr int64_t slot_of(uint64_t epoch, int source) const {
    return static_cast<int64_t>(epoch & 1) * num_ranks + source;
  }
};

// What may go wrong in an exchange. The kernel still ends: without the rows of that peer, and with a status.
enum class EpError : uint32_t {
  kNone,
  kNotReleased,   // the peer has not released the epoch before the last within the deadline
  kNotArrived,    // nothing has come from the peer within the deadline
  kAborted,       // the peer has given the epoch up
  kDisagreement,  // the peer's rows are of another kind or size
  kCapacity,      // more rows have come than there is room for, or fewer are there than are sent back
};

// One word; 0: nothing went wrong.
constexpr uint64_t ep_status(EpError error, int peer, uint64_t epoch) {
  return epoch << 32 | static_cast<uint64_t>(peer) << 8 | static_cast<uint64_t>(error);
}

// The two halves of an exchange, each of which is ordered among its own.
enum class EpHalf { kSend, kReceive };

// What the kernels of an exchange are given. Not the epoch: that is counted on the device, so that a CUDA
// graph which is replayed goes on counting. python/moela/ep/device.py is a mirror of it.
struct EpExchange {
  EpMemory memory;
  uint64_t* epochs;  // [2]: by half, the last one; its kernels work on the next
  uint32_t kind;
  uint32_t row_bytes;  // a multiple of 16
  uint64_t deadline;   // nanoseconds that one wait may take
  uint32_t* done;      // [2]: by half, thread blocks that have ended; zero before and after
  uint64_t* status;    // [1]; written where something goes wrong, the last of several
};

}  // namespace moela::cuda
