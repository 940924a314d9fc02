// Global memory: registered allocations, checked like shared memory, and flags that order threads.
#include <cstring>
#include <memory>

#include "emu/world.h"

namespace moela::emu {

struct Allocation {
  std::unique_ptr<uint8_t[]> storage;
  uint8_t* base;
  size_t bytes;
  bool is_constant = false;
  Shadow shadow;
};

namespace {

constexpr size_t kAlignment = 256;  // as cudaMalloc promises

std::map<uintptr_t, std::unique_ptr<Allocation>>& allocations() {
  static std::map<uintptr_t, std::unique_ptr<Allocation>> all;
  return all;
}

Allocation* find(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto it = allocations().upper_bound(at);
  if (it == allocations().begin()) return nullptr;
  Allocation* found = std::prev(it)->second.get();
  return at + bytes <= reinterpret_cast<uintptr_t>(found->base) + found->bytes ? found : nullptr;
}

std::string global_name(GlobalRange range, size_t offset) {
  return "global memory, byte " + std::to_string(offset) + " of the allocation of " +
         std::to_string(range.allocation->bytes) + " bytes";
}

Flag* find_flag(const void* at, int rank) {
  auto it = world->flags.find({at, rank});
  return it == world->flags.end() ? nullptr : &it->second;
}

// What a release at this scope publishes is for readers of the own device, or of all.
void publish(const void* at, Scope scope, bool is_update) {
  Fiber& me = current();
  Gather gather;
  gather.release(me.self);
  const int rank = me.block->rank;
  for (const int to : {rank, -1}) {
    if (to == -1 && scope != Scope::kSys) continue;
    Flag& flag = world->flags[{at, to}];
    // A read-modify-write continues the release sequence of the value that it replaces; a store ends it.
    if (!is_update) flag = {};
    flag.known.join(gather.all);
  }
}

// What the releases that a load at this scope may take its value from have published.
Knowledge published_at(const void* at, Scope scope) {
  Knowledge found;
  if (const Flag* flag = find_flag(at, current().block->rank)) found.join(flag->known);
  if (scope != Scope::kSys) return found;
  if (const Flag* flag = find_flag(at, -1)) found.join(flag->known);
  return found;
}

void observe(const void* at, Scope scope) { current().self.known.join(published_at(at, scope)); }

// A relaxed store carries what the thread's last fence has published, at the narrower of the two scopes.
void publish_fenced(const void* at, Scope scope) {
  Fiber& me = current();
  for (const Scope fence : {Scope::kGpu, Scope::kSys}) {
    const Knowledge& known = me.fenced_for_flags[static_cast<size_t>(fence)];
    world->flags[{at, me.block->rank}].known.join(known);
    if (fence == Scope::kSys && scope == Scope::kSys) world->flags[{at, -1}].known.join(known);
  }
}

GlobalRange atomic_access(const void* at, uint32_t bytes, bool is_write, const char* what, Where where) {
  const GlobalRange range = resolve_global(at, bytes, what, where);
  Actor actor = thread_actor(current(), where);
  actor.access.proxy = Proxy::kAtomic;
  access_global(range, bytes, is_write, actor, what, where);
  return range;
}

uint64_t value_at(const void* at, uint32_t bytes) {
  uint64_t value = 0;
  std::memcpy(&value, at, bytes);
  return value;
}

}  // namespace

void* allocate(size_t bytes) {
  auto storage = std::make_unique<uint8_t[]>(bytes + kAlignment);
  auto* base = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(storage.get()) + kAlignment - 1) /
                                          kAlignment * kAlignment);
  std::memset(base, 0xFF, bytes);
  allocations()[reinterpret_cast<uintptr_t>(base)] =
      std::make_unique<Allocation>(Allocation{std::move(storage), base, bytes, false, Shadow(bytes)});
  return base;
}

void release(void* memory) { allocations().erase(reinterpret_cast<uintptr_t>(memory)); }

void copy_to(void* device, const void* host, size_t bytes) {
  std::memcpy(device, host, bytes);
  Allocation& to = *find(device, bytes);
  to.shadow.initialise(static_cast<size_t>(static_cast<uint8_t*>(device) - to.base), bytes);
}

void fill(void* device, int byte, size_t bytes) {
  const std::vector<uint8_t> host(bytes, static_cast<uint8_t>(byte));
  copy_to(device, host.data(), bytes);
}

void copy_from(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }

void mark_constant(void* memory) { find(memory, 0)->is_constant = true; }

bool is_allocated(const void* address, size_t bytes) { return find(address, bytes) != nullptr; }

void forget_global_accesses() {
  for (auto& [at, allocation] : allocations()) allocation->shadow.forget();
}

GlobalRange resolve_global(const void* address, size_t bytes, const char* what, Where where) {
  Allocation* found = find(address, bytes);
  if (found == nullptr)
    fail("bounds", std::string(what) + " of " + std::to_string(bytes) + " bytes outside every allocation",
         where);
  return {found, static_cast<size_t>(static_cast<const uint8_t*>(address) - found->base)};
}

void check_has_value(GlobalRange range, size_t bytes, const Actor& actor, const char* what, Where where) {
  if (!world->options.races || range.allocation->shadow.is_initialised(range.offset, bytes)) return;
  Conflict found;
  found.kind = Conflict::kUninitialised;
  fail_with(found, true, actor, what, global_name(range, range.offset), where);
}

void access_global(GlobalRange range, size_t bytes, bool is_write, const Actor& actor, const char* what,
                   Where where) {
  const Fiber& me = current();
  if (me.block->grid->shape.overlaps_previous && !range.allocation->is_constant &&
      me.self.known.seen.get(world->previous_kernels.at(me.block->rank)) == 0)
    fail("race",
         std::string(what) + " touches " + global_name(range, range.offset) +
             " before griddepcontrol.wait: the previous kernel may still be writing it",
         where);
  if (is_write) ++world->effects;
  if (!world->options.races) return;
  Shadow& shadow = range.allocation->shadow;
  const Conflict found =
      is_write ? shadow.write(range.offset, bytes, actor) : shadow.read(range.offset, bytes, actor);
  if (found) fail_with(found, is_write, actor, what, global_name(range, found.offset), where);
}

void load_global(const void* from, void* value, uint32_t bytes, Path path, Where where) {
  const char* what = "a global load";
  const GlobalRange range = resolve_global(from, bytes, what, where);
  if (reinterpret_cast<uintptr_t>(from) % bytes)
    fail("alignment", std::string(what) + " is not aligned", where);
  Actor actor = thread_actor(current(), where);
  actor.is_read_only_path = path == Path::kReadOnly;
  access_global(range, bytes, false, actor, what, where);
  std::memcpy(value, from, bytes);
  note_look(from, where);
}

void store_global(void* to, const void* value, uint32_t bytes, Where where) {
  const char* what = "a global store";
  const GlobalRange range = resolve_global(to, bytes, what, where);
  if (reinterpret_cast<uintptr_t>(to) % bytes)
    fail("alignment", std::string(what) + " is not aligned", where);
  access_global(range, bytes, true, thread_actor(current(), where), what, where);
  std::memcpy(to, value, bytes);
}

void load_atomic(const void* from, void* value, uint32_t bytes, bool is_acquire, Scope scope, Where where) {
  atomic_access(from, bytes, false, "a flag load", where);
  std::memcpy(value, from, bytes);
  if (is_acquire) {
    observe(from, scope);
  } else {
    current().found_in_flags[static_cast<size_t>(scope)].join(published_at(from, scope));
  }
  note_look(from, where);
}

void store_atomic(void* to, const void* value, uint32_t bytes, bool is_release, Scope scope, Where where) {
  atomic_access(to, bytes, true, "a flag store", where);
  std::memcpy(to, value, bytes);
  if (is_release) {
    publish(to, scope, false);
  } else {
    world->flags.erase({to, current().block->rank});
    world->flags.erase({to, -1});
    publish_fenced(to, scope);
  }
}

void fence_acq_rel(Scope scope) {
  Fiber& me = current();
  me.self.known.join(me.found_in_flags[static_cast<size_t>(Scope::kGpu)]);
  if (scope == Scope::kSys) me.self.known.join(me.found_in_flags[static_cast<size_t>(Scope::kSys)]);
  Gather gather;
  gather.release(me.self);
  me.fenced_for_flags[static_cast<size_t>(scope)] = gather.all;
}

uint64_t add_atomic(void* to, uint64_t value, uint32_t bytes, bool is_acquire, bool is_release, Scope scope,
                    Where where) {
  const GlobalRange range = resolve_global(to, bytes, "a flag update", where);
  check_has_value(range, bytes, thread_actor(current(), where), "a flag update", where);
  atomic_access(to, bytes, true, "a flag update", where);
  const uint64_t old = value_at(to, bytes), sum = old + value;
  std::memcpy(to, &sum, bytes);
  if (is_acquire) observe(to, scope);
  if (is_release) publish(to, scope, true);
  return old;
}

void wait_flag_at_least(const void* flag, uint64_t value, uint32_t bytes, Scope scope, Where where) {
  struct FlagWait final : Waiting {
    const void* at;
    uint64_t wanted;
    uint32_t bytes;
    bool is_over() const override { return value_at(at, bytes) >= wanted; }
    std::string what() const override {
      return "flag to become " + std::to_string(wanted) + "; it is " + std::to_string(value_at(at, bytes));
    }
  };
  atomic_access(flag, bytes, false, "a wait for a flag", where);
  FlagWait waiting;
  waiting.at = flag;
  waiting.wanted = value;
  waiting.bytes = bytes;
  wait_until(waiting, where);
  // Again: the value that ended the wait may have come from a plain store.
  atomic_access(flag, bytes, false, "a wait for a flag", where);
  observe(flag, scope);
}

}  // namespace moela::emu
