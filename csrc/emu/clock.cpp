#include "emu/clock.h"

#include <algorithm>
#include <array>

namespace moela::emu {
namespace {

using Ticks = std::vector<uint32_t>;

bool covers(const Ticks& a, const Ticks& b) {
  if (a.size() < b.size()) return false;
  bool all = true;
  for (size_t i = 0; i < b.size(); ++i) all &= a[i] >= b[i];
  return all;
}

}  // namespace

uint32_t Clock::get(Agent agent) const {
  if (!table_) return 0;
  const uint32_t slot = slot_of(agent), local = local_of(agent);
  const auto it = std::lower_bound(table_->begin(), table_->end(), slot,
                                   [](const Entry& entry, uint32_t s) { return entry.slot < s; });
  if (it == table_->end() || it->slot != slot || local >= it->row->size()) return 0;
  return (*it->row)[local];
}

void Clock::set(Agent agent, uint32_t tick) {
  if (get(agent) >= tick) return;
  if (!table_) table_ = std::make_shared<Table>();
  if (table_.use_count() > 1) table_ = std::make_shared<Table>(*table_);
  const uint32_t slot = slot_of(agent), local = local_of(agent);
  auto it = std::lower_bound(table_->begin(), table_->end(), slot,
                             [](const Entry& entry, uint32_t s) { return entry.slot < s; });
  if (it == table_->end() || it->slot != slot) it = table_->insert(it, {slot, std::make_shared<Ticks>()});
  if (it->row.use_count() > 1) it->row = std::make_shared<Ticks>(*it->row);
  if (it->row->size() <= local) it->row->resize(local + 1);
  (*it->row)[local] = tick;
}

Clock::TablePtr Clock::joined(const TablePtr& a, const TablePtr& b) {
  auto result = std::make_shared<Table>();
  bool is_a = true, is_b = true;
  for (size_t i = 0, j = 0; i < a->size() || j < b->size();) {
    if (j == b->size() || (i < a->size() && (*a)[i].slot < (*b)[j].slot)) {
      result->push_back((*a)[i++]);
      is_b = false;
    } else if (i == a->size() || (*b)[j].slot < (*a)[i].slot) {
      result->push_back((*b)[j++]);
      is_a = false;
    } else {
      const Entry &x = (*a)[i++], &y = (*b)[j++];
      if (x.row == y.row || covers(*x.row, *y.row)) {
        is_b &= x.row == y.row || covers(*y.row, *x.row);
        result->push_back(x);
      } else if (covers(*y.row, *x.row)) {
        is_a = false;
        result->push_back(y);
      } else {
        is_a = is_b = false;
        auto row = std::make_shared<Ticks>(*x.row);
        row->resize(std::max(row->size(), y.row->size()));
        for (size_t k = 0; k < y.row->size(); ++k) (*row)[k] = std::max((*row)[k], (*y.row)[k]);
        result->push_back({x.slot, row});
      }
    }
  }
  return is_a ? a : is_b ? b : result;
}

void Clock::join(const Clock& other) {
  if (!other.table_ || other.table_ == table_) return;
  if (!table_) {
    table_ = other.table_;
    return;
  }
  // The 128 threads that wait on one barrier all ask for the same join. The cache owns its keys, so a pointer
  // in it cannot come to mean another table.
  struct Known {
    TablePtr a, b, result;
  };
  static std::array<Known, 64> cache;
  const auto hash = (reinterpret_cast<uintptr_t>(table_.get()) / 16) * 31 +
                    reinterpret_cast<uintptr_t>(other.table_.get()) / 16;
  Known& known = cache[hash % cache.size()];
  if (known.a != table_ || known.b != other.table_)
    known = {table_, other.table_, joined(table_, other.table_)};
  table_ = known.result;
}

bool Clock::knows_all_of(const Clock& other) const {
  if (!other.table_) return true;
  Clock both = *this;
  both.join(other);
  return both.is_same(*this);
}

void Clock::meet(const Clock& other) {
  if (table_ == other.table_) return;
  if (!table_ || !other.table_) {
    table_ = nullptr;
    return;
  }
  auto result = std::make_shared<Table>();
  for (const Entry& entry : *table_) {
    for (const Entry& theirs : *other.table_) {
      if (entry.slot != theirs.slot) continue;
      auto row = std::make_shared<Ticks>(std::min(entry.row->size(), theirs.row->size()));
      for (size_t k = 0; k < row->size(); ++k) (*row)[k] = std::min((*entry.row)[k], (*theirs.row)[k]);
      result->push_back({entry.slot, row});
    }
  }
  table_ = result;
}

}  // namespace moela::emu
