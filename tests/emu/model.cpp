// Clock and Shadow against plain models of what they should do, on random histories:
//   model clock|shadow <seed>
#include <algorithm>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "emu/clock.h"
#include "emu/shadow.h"

namespace {

using namespace moela::emu;

constexpr int kAgents = 6, kSteps = 4000;

// Agents of several blocks, some far into their block.
Agent agent_of(int i) {
  return static_cast<Agent>(i / 2) << kLocalBits | static_cast<Agent>(i % 2 * 700 + i);
}

using PlainClock = std::map<Agent, uint32_t>;

uint32_t get(const PlainClock& clock, Agent agent) {
  const auto it = clock.find(agent);
  return it == clock.end() ? 0 : it->second;
}

bool clocks_agree(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Clock> clocks(kAgents);
  std::vector<PlainClock> plain(kAgents);
  for (int step = 0; step < kSteps; ++step) {
    const int i = static_cast<int>(random() % kAgents), j = static_cast<int>(random() % kAgents);
    const Agent agent = agent_of(j);
    switch (random() % 6) {
      case 0: {  // a tick never falls
        const uint32_t tick = random() % 50;
        clocks[i].set(agent, tick);
        plain[i][agent] = std::max(get(plain[i], agent), tick);
        break;
      }
      case 1:
      case 2:
        clocks[i].join(clocks[j]);
        for (const auto& [a, t] : PlainClock(plain[j])) plain[i][a] = std::max(get(plain[i], a), t);
        break;
      case 3:
        clocks[i].meet(clocks[j]);
        for (auto& [a, t] : plain[i]) t = std::min(t, get(plain[j], a));
        break;
      case 4:
        clocks[i] = clocks[j];
        plain[i] = plain[j];
        break;
      default: clocks[i] = {}; plain[i] = {};
    }
    for (int c = 0; c < kAgents; ++c)
      for (int a = 0; a < kAgents; ++a)
        if (clocks[c].get(agent_of(a)) != get(plain[c], agent_of(a))) return false;
  }
  return true;
}

struct PlainAccess {
  Agent agent;
  uint32_t tick;
  bool is_write, is_atomic;
};

// Threads access 64 bytes and pass on their knowledge; every access is remembered for ever.
bool shadows_agree(uint32_t seed) {
  constexpr size_t kBytes = 64;
  std::mt19937 random(seed);
  Shadow shadow(kBytes);
  shadow.initialise(0, kBytes);
  std::vector<std::vector<PlainAccess>> history(kBytes);
  std::vector<Clock> seen(kAgents);
  std::vector<uint32_t> tick(kAgents, 1);
  int conflicts = 0;
  for (int step = 0; step < kSteps; ++step) {
    const int i = static_cast<int>(random() % kAgents);
    const Agent agent = agent_of(i);
    if (random() % 2 == 0) {  // one thread releases, another acquires
      const int to = static_cast<int>(random() % kAgents);
      seen[to].join(seen[i]);
      seen[to].set(agent, tick[i]++);
      continue;
    }
    const size_t bytes = size_t{1} << random() % 6, offset = random() % (kBytes / bytes) * bytes;
    const bool is_write = random() % 3 == 0, is_atomic = random() % 2 == 0;
    bool is_conflict = false;
    for (size_t at = offset; at < offset + bytes; ++at)
      for (const PlainAccess& past : history[at])
        is_conflict |= past.agent != agent && (past.is_write || is_write) && !(past.is_atomic && is_atomic) &&
                       seen[i].get(past.agent) < past.tick;
    const Actor actor = {.access = {agent, tick[i], 0, is_atomic ? Proxy::kAtomic : Proxy::kGeneric},
                         .seen = &seen[i],
                         .self = agent};
    const Conflict found = is_write ? shadow.write(offset, bytes, actor) : shadow.read(offset, bytes, actor);
    if (static_cast<bool>(found) != is_conflict) return false;
    conflicts += is_conflict;
    for (size_t at = offset; at < offset + bytes; ++at) {
      if (is_conflict) history[at].clear();  // a run ends here; this one goes on with clean bytes
      history[at].push_back({agent, tick[i], is_write, is_atomic});
    }
    if (is_conflict) {
      Actor all_knowing = actor;
      Clock everything;
      for (int a = 0; a < kAgents; ++a) everything.set(agent_of(a), ~0u);
      all_knowing.seen = &everything;
      all_knowing.access.proxy = Proxy::kGeneric;
      shadow.write(offset, bytes, all_knowing);
      for (size_t at = offset; at < offset + bytes; ++at) history[at] = {{agent, tick[i], true, false}};
    }
  }
  return conflicts > 50;
}

}  // namespace

int main(int, char** argv) {
  const auto seed = static_cast<uint32_t>(std::stoul(argv[2]));
  const bool is_right = std::string(argv[1]) == "clock" ? clocks_agree(seed) : shadows_agree(seed);
  std::printf("%s\n", is_right ? "right" : "wrong");
  return 0;
}
