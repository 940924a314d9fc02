// What reports call things.
#include "emu/world.h"

namespace moela::emu {

Agent Block::new_agent(std::string name, std::string remedy) {
  agents.push_back({std::move(name), std::move(remedy)});
  return slot << kLocalBits | static_cast<uint32_t>(threads() + agents.size() - 1);
}

std::string remedy_for(Agent agent) {
  const Block& block = world->blocks[slot_of(agent)];
  const uint32_t local = local_of(agent);
  const auto threads = static_cast<uint32_t>(block.threads());
  if (local >= threads) return block.agents[local - threads].remedy;
  return "a barrier that both take part in, or a release by that thread and an acquire by this one";
}

std::string name_of(const Block& block) {
  std::string name = "block " + std::to_string(block.index);
  if (block.grid->shape.cluster > 1)
    name += " (rank " + std::to_string(block.cluster_rank) + " of its cluster)";
  if (block.rank > 0) name += " of grid " + std::to_string(block.rank);
  return name;
}

std::string name_of(Agent agent) {
  const Block& block = world->blocks[slot_of(agent)];
  const uint32_t local = local_of(agent);
  const auto threads = static_cast<uint32_t>(block.threads());
  const std::string who =
      local < threads ? "thread " + std::to_string(local) + " (warp " + std::to_string(local / 32) + ")"
                      : block.agents[local - threads].name;
  return who + " of " + name_of(block);
}

std::string smem_name(const Block& block, uint32_t offset) {
  return "smem+" + std::to_string(offset) + " of " + name_of(block);
}

std::string place(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

// Most accesses in a row come from one line, run by thread after thread.
uint16_t site_of(Where where) {
  static uint16_t last = 0;
  auto is_at = [&](const Where& site) {
    return site.line() == where.line() && site.file_name() == where.file_name();
  };
  auto& sites = world->sites;
  if (last < sites.size() && is_at(sites[last])) return last;
  for (last = 0; last < sites.size() && !is_at(sites[last]);) ++last;
  if (last == sites.size()) sites.push_back(where);
  return last;
}

}  // namespace moela::emu
