#include "emu/shadow.h"

#include <algorithm>

namespace moela::emu {
namespace {

bool is_ordered(const Access& earlier, const Actor& actor) {
  return earlier.agent == actor.self || actor.seen->get(earlier.agent) >= earlier.tick;
}

bool is_atomic(const Access& a) { return a.proxy == Proxy::kAtomic || a.proxy == Proxy::kReduce; }

bool are_both_atomic(const Access& a, const Access& b) { return is_atomic(a) && a.proxy == b.proxy; }

// A generic write reaches another proxy only through that proxy's fence.
bool is_fenced(const Access& write, const Actor& actor) {
  if (actor.fenced == nullptr || write.proxy == Proxy::kAsync || write.proxy == Proxy::kReduce) return true;
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

void Shadow::split(Line& line) {
  if (line.bytes) return;
  line.bytes = std::make_unique<std::array<Cell, kLine>>();
  line.bytes->fill(line.whole);
}

// An earlier write that the new access must be ordered after, and fenced from.
void Shadow::check_earlier_write(const Access& write, const Actor& actor, Conflict& found) {
  if (write.proxy == Proxy::kNone || are_both_atomic(write, actor.access)) return;
  if (!is_ordered(write, actor)) mark(found, Conflict::kWrite, write);
  if (!is_fenced(write, actor)) mark(found, Conflict::kProxy, write);
}

void Shadow::check_read(const Cell& cell, const Actor& actor, Conflict& found) {
  if (actor.is_read_only_path && cell.write.proxy != Proxy::kNone &&
      actor.before->get(cell.write.agent) < cell.write.tick)
    mark(found, Conflict::kReadOnly, cell.write);
  check_earlier_write(cell.write, actor, found);
  if (!is_atomic(cell.write)) return;  // only atomic writes leave earlier writes behind
  for (const Access& other : cell.others)
    if (other.is_write) check_earlier_write(other, actor, found);
}

void Shadow::check_write(const Cell& cell, const Actor& actor, Conflict& found) {
  check_earlier_write(cell.write, actor, found);
  for (const Access& other : cell.others) {
    if (other.is_write) {
      check_earlier_write(other, actor, found);
    } else if (!are_both_atomic(other, actor.access) && !is_ordered(other, actor)) {
      mark(found, Conflict::kRead, other);
    }
  }
}

// Readers that the new reader has seen need not be kept: what is ordered after it is ordered after them. They
// are dropped in bulk, so that a broadcast to a whole block does not cost the square of its size.
void Shadow::record_read(Cell& cell, const Actor& actor) {
  if (!cell.others.empty() && cell.others.back().agent == actor.access.agent &&
      cell.others.back().proxy == actor.access.proxy && !cell.others.back().is_write) {
    cell.others.back() = actor.access;
    return;
  }
  if (cell.others.size() >= cell.prune_at) {
    std::erase_if(cell.others, [&](const Access& read) {
      return !read.is_write && read.proxy == actor.access.proxy &&
             (read.agent == actor.access.agent || (!is_atomic(read) && is_ordered(read, actor)));
    });
    cell.prune_at = std::max<size_t>(32, cell.others.size() * 2);
  }
  cell.others.push_back(actor.access);
}

// What comes after a plain write must be ordered after it, and so after all before it. Among themselves
// atomic writes need no order: a later one must still be checked against what came before this one.
void Shadow::record_write(Cell& cell, const Actor& actor) {
  if (!is_atomic(actor.access)) {
    cell.others.clear();
  } else {
    if (cell.write.proxy != Proxy::kNone) cell.others.push_back(cell.write);
    std::erase_if(cell.others, [&](const Access& other) {
      return is_atomic(other) && (is_ordered(other, actor) ||
                                  (other.agent == actor.access.agent && other.proxy == actor.access.proxy));
    });
  }
  cell.write = actor.access;
  cell.write.is_write = true;
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
      split(l);
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
    if (count == kLine && !is_atomic(actor.access)) l.bytes.reset();
    if (count == kLine && !l.bytes) {
      record_write(l.whole, actor);
    } else {
      split(l);
      for (size_t b = first; b < first + count; ++b) record_write((*l.bytes)[b], actor);
    }
    at += count;
  }
  return found;
}

bool Shadow::is_initialised(size_t offset, size_t bytes) const {
  for (size_t at = offset; at < offset + bytes; ++at)
    if (!(init_[at / kLine] >> at % kLine & 1)) return false;
  return true;
}

void Shadow::initialise(size_t offset, size_t bytes) {
  for (size_t at = offset; at < offset + bytes; ++at) init_[at / kLine] |= 1u << at % kLine;
}

void Shadow::forget() {
  for (auto& page : pages_) page.reset();
}

}  // namespace moela::emu
