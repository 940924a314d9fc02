#include "emu/shadow.h"

#include <algorithm>

namespace moela::emu {
namespace {

bool is_ordered(const Access& earlier, const Actor& actor) {
  return earlier.agent == actor.self || actor.seen->get(earlier.agent) >= earlier.tick;
}

bool are_both_atomic(const Access& a, const Access& b) {
  return a.proxy == Proxy::kAtomic && b.proxy == Proxy::kAtomic;
}

// A generic write reaches the async proxy only through fence.proxy.async.
bool is_fenced(const Access& write, const Actor& actor) {
  if (actor.fenced == nullptr || write.proxy == Proxy::kAsync) return true;
  const uint32_t own = write.agent == actor.self ? actor.own_fenced : 0;
  return std::max(own, actor.fenced->get(write.agent)) >= write.tick;
}

void mark(Conflict& found, Conflict::Kind kind, const Access& other) {
  if (!found) {
    found.kind = kind;
    found.other = other;
  }
}

}  // namespace

Shadow::Line& Shadow::line(size_t index) {
  auto& page = pages_[index * kLine / kPage];
  if (!page) page = std::make_unique<Page>();
  return (*page)[index % (kPage / kLine)];
}

void Shadow::check_read(const Cell& cell, const Actor& actor, Conflict& found) {
  const Access& write = cell.write;
  if (write.proxy == Proxy::kNone) return;
  if (actor.is_read_only_path) mark(found, Conflict::kReadOnly, write);
  if (are_both_atomic(write, actor.access)) return;
  if (!is_ordered(write, actor)) mark(found, Conflict::kWrite, write);
  if (!is_fenced(write, actor)) mark(found, Conflict::kProxy, write);
}

void Shadow::check_write(const Cell& cell, const Actor& actor, Conflict& found) {
  const Access& write = cell.write;
  if (write.proxy != Proxy::kNone && !are_both_atomic(write, actor.access)) {
    if (!is_ordered(write, actor)) mark(found, Conflict::kWrite, write);
    if (!is_fenced(write, actor)) mark(found, Conflict::kProxy, write);
  }
  for (const Access& read : cell.reads)
    if (!are_both_atomic(read, actor.access) && !is_ordered(read, actor)) mark(found, Conflict::kRead, read);
}

// Readers that the new reader has seen need not be kept: what is ordered after it is ordered after them. They
// are dropped in bulk, so that a broadcast to a whole block does not cost the square of its size.
void Shadow::record_read(Cell& cell, const Actor& actor) {
  if (!cell.reads.empty() && cell.reads.back().agent == actor.access.agent &&
      cell.reads.back().proxy == actor.access.proxy) {
    cell.reads.back() = actor.access;
    return;
  }
  if (cell.reads.size() >= cell.prune_at) {
    std::erase_if(cell.reads, [&](const Access& read) {
      return read.proxy == actor.access.proxy &&
             (read.agent == actor.access.agent || (read.proxy != Proxy::kAtomic && is_ordered(read, actor)));
    });
    cell.prune_at = std::max<size_t>(32, cell.reads.size() * 2);
  }
  cell.reads.push_back(actor.access);
}

Conflict Shadow::read(size_t offset, size_t bytes, const Actor& actor) {
  Conflict found;
  for (size_t at = offset; at < offset + bytes && !found;) {
    const size_t first = at % kLine, count = std::min(kLine - first, offset + bytes - at);
    found.offset = at;
    const uint32_t wanted = ((1u << count) - 1) << first;
    if ((init_[at / kLine] & wanted) != wanted) mark(found, Conflict::kUninitialised, {});
    Line& l = line(at / kLine);
    if (count == kLine && !l.bytes) {
      check_read(l.whole, actor, found);
      record_read(l.whole, actor);
    } else {
      if (!l.bytes) {
        l.bytes = std::make_unique<std::array<Cell, kLine>>();
        l.bytes->fill(l.whole);
      }
      for (size_t b = first; b < first + count; ++b) {
        check_read((*l.bytes)[b], actor, found);
        record_read((*l.bytes)[b], actor);
      }
    }
    at += count;
  }
  return found;
}

Conflict Shadow::write(size_t offset, size_t bytes, const Actor& actor) {
  Conflict found;
  for (size_t at = offset; at < offset + bytes && !found;) {
    const size_t first = at % kLine, count = std::min(kLine - first, offset + bytes - at);
    found.offset = at;
    init_[at / kLine] |= ((1u << count) - 1) << first;
    Line& l = line(at / kLine);
    if (l.bytes) {
      for (size_t b = first; b < first + count; ++b) check_write((*l.bytes)[b], actor, found);
    } else {
      check_write(l.whole, actor, found);
    }
    if (count == kLine) {
      l.bytes.reset();
      l.whole = {actor.access, {}, 32};
    } else {
      if (!l.bytes) {
        l.bytes = std::make_unique<std::array<Cell, kLine>>();
        l.bytes->fill(l.whole);
      }
      for (size_t b = first; b < first + count; ++b) (*l.bytes)[b] = {actor.access, {}, 32};
    }
    at += count;
  }
  return found;
}

void Shadow::initialise(size_t offset, size_t bytes) {
  for (size_t at = offset; at < offset + bytes; ++at) init_[at / kLine] |= 1u << at % kLine;
}

void Shadow::forget() {
  for (auto& page : pages_) page.reset();
}

}  // namespace moela::emu
