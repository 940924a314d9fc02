// wgmma.mma_async: operands are checked when the last thread of the warpgroup has issued it, results appear
// in the accumulators when a wait says that they may be read.
#include <algorithm>
#include <cmath>

#include "emu/mma.h"

namespace moela::emu {

namespace {

// What all 128 threads know: an operand is safe to read only if each of them has waited for it.
Knowledge common_knowledge(const Operation& op) {
  Knowledge common;
  bool is_first = true;
  for (const auto& knower : op.knowers) {
    Knowledge known = knower.known;
    if (knower.count == 1) {
      // A thread knows its own past, up to its last proxy fence. Threads that share a clock know of each
      // other what the clock says.
      known.seen.set(knower.self->agent, ~0u);
      known.fenced_shared.set(knower.self->agent, knower.fenced_tick);
    }
    if (is_first) {
      common = known;
    } else {
      common.seen.meet(known.seen);
      common.fenced_shared.meet(known.fenced_shared);
    }
    is_first = false;
  }
  return common;
}

void note_knowledge(Operation& op, const Self& self) {
  for (auto& knower : op.knowers)
    if (knower.known.is_same(self.known)) {
      ++knower.count;
      return;
    }
  op.knowers.push_back({self.known, &self, self.fenced_shared_tick, 1});
}

Agent tensor_core(const Block& block, int warpgroup) {
  return block.slot << kLocalBits | static_cast<uint32_t>(block.threads() + warpgroup);
}

void check_operand(const Operation& op, uint64_t descriptor, int rows, bool is_mn_major,
                   const Knowledge& known, Where where) {
  const Descriptor d(descriptor);
  if (d.base_offset != 0)
    fail("wgmma", "a descriptor with a base offset: tiles start on their swizzle repeat", where);
  const uint32_t repeat = 8 * d.span;
  if (d.is_swizzled && d.start % repeat >= d.span)
    fail("wgmma",
         "an operand at " + smem_name(*op.block, d.start - kSmemWindow) + " starts in row " +
             std::to_string(d.start % repeat / d.span) +
             " of the repeat of its swizzle: a tile starts at a multiple of " + std::to_string(repeat),
         where);
  const Actor actor = {.access = {tensor_core(*op.block, current().thread / kWarpgroup), op.group + 1,
                                  site_of(where), Proxy::kAsync},
                       .seen = &known.seen,
                       .fenced = &known.fenced_shared,
                       .self = ~0u};
  each_chunk(descriptor, rows, op.operands.type, is_mn_major, [&](int, int, int, int, uint32_t address) {
    access_shared(resolve_shared(address, kChunkBytes, "wgmma", where), kChunkBytes, false, actor, "wgmma",
                  where);
  });
}

bool is_same_call(const Operation& op, const MmaOperands& o, uint32_t group) {
  const MmaOperands& first = op.operands;
  return first.type == o.type && first.n == o.n && first.transpose_a == o.transpose_a &&
         first.transpose_b == o.transpose_b && (first.a_registers == nullptr) == (o.a_registers == nullptr) &&
         first.a_descriptor == o.a_descriptor && first.b_descriptor == o.b_descriptor &&
         first.accumulate == o.accumulate && op.group == group;
}

std::shared_ptr<Operation> start_operation(const MmaOperands& operands, Fiber& me,
                                           const AccumulatorState& state) {
  auto op = std::make_shared<Operation>();
  op->operands = operands;
  op->block = me.block;
  op->group = me.wgmma_group;
  if (operands.a_registers != nullptr) op->a_fragment.resize(static_cast<size_t>(kM * k_of(operands.type)));
  if (operands.accumulate && state.is_in_flight) op->previous = state.last;
  if (operands.accumulate && !state.is_in_flight) {
    op->starts_from_registers = true;
    op->d.resize(static_cast<size_t>(kM * operands.n));
  }
  return op;
}

// A product that some threads have left out would never be complete on hardware, or take another's place.
void check_all_have_issued(const Warpgroup& group, uint32_t groups, Where where) {
  for (const auto& op : group.operations)
    if (op && op->group < groups && op->issued < kWarpgroup)
      fail("divergence",
           "only " + std::to_string(op->issued) +
               " of the 128 threads of the warpgroup have issued a wgmma "
               "of group " +
               std::to_string(op->group) + ", which all have committed",
           where);
}

// Fragments of A: the instruction reads them until its group has retired.
void take_fragment(FragmentState& state, const Fiber& me, Where where) {
  if (state.words_set != 0xF)
    fail("fragment", "wgmma reads a fragment of A of which not all registers have a value", where);
  if (state.touched_at >= me.wgmma_fences)
    fail("fragment", "no wgmma.fence between the last access to the fragment of A and wgmma", where);
  state.read_until = me.wgmma_group + 1;
}

}  // namespace

AccumulatorState::AccumulatorState() : touched_at(current().wgmma_fences) {}
FragmentState::FragmentState() : touched_at(current().wgmma_fences) {}

void wgmma_fence() { ++current().wgmma_fences; }

void touch_accumulator(AccumulatorState& state, bool is_write, Where where) {
  if (state.is_in_flight)
    fail("accumulator", "an accumulator is touched before the wgmma.wait_group that gives it back", where);
  if (!is_write && !state.is_initialised)
    fail("accumulator", "an accumulator is read before it has a value", where);
  state.is_initialised = true;
  state.touched_at = current().wgmma_fences;
}

void drop_accumulator(const AccumulatorState& state) {
  if (state.is_in_flight && !world->is_aborted)
    fail("accumulator", "an accumulator ends while the tensor core writes it", current().where);
}

void touch_fragment(FragmentState& state, int word, bool is_write, Where where) {
  if (state.read_until > current().wgmma_retired)
    fail("fragment", "a fragment of A is touched while wgmma may still read it: wgmma.wait_group comes first",
         where);
  if (is_write) state.words_set |= 1u << word;
  if (!is_write && !(state.words_set >> word & 1))
    fail("fragment", "a fragment of A is read before it has a value", where);
  state.touched_at = current().wgmma_fences;
}

void drop_fragment(const FragmentState& state) {
  if (state.read_until > current().wgmma_retired && !world->is_aborted)
    fail("fragment", "a fragment of A ends while wgmma may still read it: wgmma.wait_group comes first",
         current().where);
}

void wgmma(AccumulatorState& state, float* registers, const MmaOperands& operands, Where where) {
  Fiber& me = current();
  me.where = where;
  if (me.block->threads() / kWarpgroup <= me.thread / kWarpgroup)
    fail("wgmma", "needs a whole warpgroup of 128 threads", where);
  Warpgroup& group = me.block->warpgroups[me.thread / kWarpgroup];
  const int t = me.thread % kWarpgroup;
  if (operands.accumulate && !state.is_initialised)
    fail("accumulator", "wgmma adds to an accumulator that has no value", where);
  if (!state.is_in_flight && state.touched_at >= me.wgmma_fences)
    fail("accumulator", "no wgmma.fence between the last access to the accumulator and wgmma", where);

  if (state.is_in_flight && state.issued_at >= me.wgmma_fences &&
      k_of(state.last->operands.type) != k_of(operands.type))
    fail("accumulator", "no wgmma.fence between products of different shapes in one accumulator", where);
  if (operands.a_state != nullptr) take_fragment(*operands.a_state, me, where);
  const size_t index = me.wgmma_count++;
  while (group.first + group.operations.size() <= index) group.operations.emplace_back();
  std::shared_ptr<Operation>& slot = group.operations[index - group.first];
  if (!slot) slot = start_operation(operands, me, state);
  const std::shared_ptr<Operation> op = slot;
  if (!is_same_call(*op, operands, me.wgmma_group))
    fail("divergence", "threads of one warpgroup give wgmma different operands", where);
  note_knowledge(*op, me.self);
  if (op->starts_from_registers)
    for (int i = 0; i < operands.n / 2; ++i) {
      const RowColumn at = accumulator_element(t, i);
      op->d[static_cast<size_t>(at.row * operands.n + at.column)] = registers[i];
    }
  if (operands.a_registers != nullptr) take_a_fragment(*op, t, operands.a_registers);

  state.is_in_flight = state.is_initialised = true;
  state.issued_at = me.wgmma_fences;
  state.last = op;
  auto mine = std::find_if(me.in_flight.begin(), me.in_flight.end(),
                           [&](const InFlight& f) { return f.state == &state; });
  if (mine == me.in_flight.end()) {
    me.in_flight.push_back({&state, registers, op});
  } else {
    mine->operation = op;
  }
  std::fill(registers, registers + operands.n / 2, std::nanf(""));

  if (++op->issued < kWarpgroup) return;
  const Knowledge known = common_knowledge(*op);
  if (operands.a_registers == nullptr)
    check_operand(*op, operands.a_descriptor, kM, operands.transpose_a, known, where);
  check_operand(*op, operands.b_descriptor, operands.n, operands.transpose_b, known, where);
  op->knowers.clear();
  if (world->options.schedule == Schedule::kEager) compute(*op);
  while (!group.operations.empty() && group.operations.front() &&
         group.operations.front()->issued == kWarpgroup) {
    group.operations.pop_front();
    ++group.first;
  }
}

void wgmma_commit(Where where) {
  Fiber& me = current();
  me.where = where;
  Warpgroup& group = me.block->warpgroups[me.thread / kWarpgroup];
  if (group.committed.size() <= me.wgmma_group) group.committed.resize(me.wgmma_group + 1);
  ++group.committed[me.wgmma_group++];
}

void wgmma_wait(int max_pending, Where where) {
  struct GroupWait final : Waiting {
    const Warpgroup* group;
    uint32_t target;
    bool is_over() const override {
      return target == 0 || (group->committed.size() >= target && group->committed[target - 1] == kWarpgroup);
    }
    std::string what() const override {
      return "wgmma.wait_group (not all threads have committed the group)";
    }
  };
  Fiber& me = current();
  const int index = me.thread / kWarpgroup;
  const auto pending = static_cast<uint32_t>(max_pending);
  GroupWait waiting;
  waiting.group = &me.block->warpgroups[index];
  waiting.target = me.wgmma_group > pending ? me.wgmma_group - pending : 0;
  wait_until(waiting, where);

  check_all_have_issued(*waiting.group, waiting.target, where);
  std::vector<InFlight> still;
  for (InFlight& f : me.in_flight) {
    Operation& op = *f.operation;
    if (op.group >= waiting.target) {
      still.push_back(f);
      continue;
    }
    compute(op);
    for (int i = 0; i < op.operands.n / 2; ++i) {
      const RowColumn at = accumulator_element(me.thread % kWarpgroup, i);
      f.registers[i] = op.d[static_cast<size_t>(at.row * op.operands.n + at.column)];
    }
    f.state->is_in_flight = false;
    f.state->last.reset();
    f.state->touched_at = 0;
  }
  me.in_flight.swap(still);
  me.wgmma_retired = std::max(me.wgmma_retired, waiting.target);
  me.self.known.seen.set(tensor_core(*me.block, index), waiting.target);
}

}  // namespace moela::emu
