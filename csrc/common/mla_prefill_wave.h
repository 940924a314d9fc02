// How the torch side runs mla_prefill on the CPU.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {

// Takes one head of a sequence after the other and cuts its queries into tiles. Heads share threads, and
// memory for blocks of keys, with so many others that threads have enough to do.
class MlaPrefillWave {
 public:
  explicit MlaPrefillWave(const cpu::MlaPrefillParams& params) : params_(params) {}

  void add(const cpu::PrefillSequence& sequence, int64_t head) {
    const int64_t first_tile = num_tiles(), first_block = num_blocks();
    // The longest first, so that no thread is left with one at the end.
    for (int64_t end = sequence.num_queries; end > 0; end = tiles_.back().first) {
      const int64_t first = (end - 1) / kernel_.queries * kernel_.queries;
      tiles_.push_back({.sequence = sequence, .head = head, .first = first, .count = end - first});
    }
    if (!is_worth_blocks(num_tiles() - first_tile, sequence.num_keys)) return;
    for (int64_t key = 0; key < sequence.num_keys; key += kernel_.keys)
      blocks_.push_back({.sequence = sequence, .head = head, .first = key});
    for (int64_t i = first_tile; i < num_tiles(); ++i) shared_.push_back({.tile = i, .block = first_block});
    if (static_cast<int64_t>(shared_.size()) >= enough_tiles_) run();
  }

  void run() {
    if (size_ < num_blocks() * block_floats_) {
      size_ = num_blocks() * block_floats_;
      memory_ = Scratch<float>(size_);
    }
    for (const Shared& s : shared_) tiles_[s.tile].blocks = memory_.get() + s.block * block_floats_;
    const cpu::PrefillProblem& p = params_.problem;
    const auto columns = static_cast<double>(p.D + p.Dv);
    parallel(num_blocks(), 0.05 * static_cast<double>(kernel_.keys) * columns,
             [&](int64_t begin, int64_t end) {
               for (int64_t i = begin; i < end; ++i)
                 kernel_.load_block(p, blocks_[i].sequence, blocks_[i].head, blocks_[i].first,
                                    memory_.get() + i * block_floats_);
             });
    double keys = 0;
    for (const cpu::PrefillTile& tile : tiles_) keys += static_cast<double>(tile.num_keys(p.causal));
    parallel(
        num_tiles(),
        1e3 + 0.02 * static_cast<double>(kernel_.queries) * columns * keys / static_cast<double>(num_tiles()),
        [&](int64_t begin, int64_t end) {
          float* scratch = scratch_of_thread(kernel_.scratch_floats(p));
          for (int64_t i = begin; i < end; ++i) kernel_.run(params_, tiles_[i], scratch);
        });
    tiles_.clear(), blocks_.clear(), shared_.clear();
  }

 private:
  struct Block {
    cpu::PrefillSequence sequence;
    int64_t head, first;
  };
  struct Shared {
    int64_t tile, block;  // its first one
  };
  static constexpr int64_t kTilesOfThread = 8;
  static constexpr int64_t kMostFloats = int64_t{16} << 20;  // 64 MB

  int64_t num_tiles() const { return static_cast<int64_t>(tiles_.size()); }
  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }

  // Whether several tiles share the blocks, more of them where threads read what others made, and those of
  // enough tiles, or of one head that has enough, fit in memory: of few queries that see many keys each tile
  // makes its own. So a wave's blocks are less than kMostFloats and those of its last head.
  bool is_worth_blocks(int64_t tiles, int64_t keys) const {
    const int64_t floats = (keys + kernel_.keys - 1) / kernel_.keys * block_floats_;
    const int64_t least = enough_tiles_ == 1 ? 2 : kTilesOfThread;
    return tiles >= least && floats > 0 &&
           (tiles >= enough_tiles_ || floats <= kMostFloats / enough_tiles_ * tiles);
  }

  const cpu::MlaPrefillParams& params_;
  const cpu::MlaPrefillKernel& kernel_ = cpu::kernels().mla_prefill;
  const int64_t block_floats_ = kernel_.block_floats(params_.problem);
  // A thread alone waits for no other, and finds one head in its caches.
  const int64_t enough_tiles_ =
      kTilesOfThread * (static_cast<int64_t>(torch::stable::get_num_threads()) - 1) + 1;
  std::vector<cpu::PrefillTile> tiles_;
  std::vector<Block> blocks_;
  std::vector<Shared> shared_;
  int64_t size_ = 0;
  Scratch<float> memory_{0};
};

}  // namespace moela
