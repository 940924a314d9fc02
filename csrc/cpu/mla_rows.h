// Rows of a latent cache, converted to float32 tiles. Part of mla_attend_kernel.h.
#pragma once

#include "cpu/convert.h"
#include "cpu/mla_attend.h"
#include "cpu/mla_tile.h"

namespace {

// A row of one dtype into its place in the panels.
template <class Element, class ToFloat>
MOELA_INLINE void fill_row(const uint8_t* row, int64_t D, float* to, const ToFloat& to_float) {
  const auto* x = reinterpret_cast<const Element*>(row);
  for (; D >= kMlaPanel; D -= kMlaPanel, x += kMlaPanel, to += kMlaPanelFloats)
    for (int i = 0; i < kMlaPanel; ++i) to[i] = to_float(x[i]);
  for (int64_t i = 0; i < D; ++i) to[i] = to_float(x[i]);
}

inline void fill_bytes(const uint8_t* row, const moela::cpu::MlaCache& cache, float* panels) {
  constexpr int64_t kGroup = moela::cpu::kMlaGroup;
  static_assert(kGroup % kMlaPanel == 0, "the columns of a panel share a scale factor");
  const auto at = [&](int64_t k) { return panels + k / kMlaPanel * kMlaPanelFloats + k % kMlaPanel; };
  const uint8_t* sf_at = row + cache.latent;
  for (int64_t k = 0; k < cache.latent; k += kMlaPanel) {
    float sf;
    std::memcpy(&sf, sf_at + k / kGroup * sizeof(float), sizeof sf);
    float* to = at(k);
    for (int i = 0; i < kMlaPanel; ++i) to[i] = from_e4m3(row[k + i]) * sf;
  }
  const uint8_t* pe = sf_at + cache.latent / kGroup * sizeof(float);
  for (int64_t k = 0; k < cache.rope; ++k) {
    uint16_t x;
    std::memcpy(&x, pe + 2 * k, sizeof x);
    *at(cache.latent + k) = from_bfloat16(x);
  }
}

inline int64_t mla_row_bytes(const moela::cpu::MlaCache& c) {
  return c.dtype == Dtype::kE4m3 ? c.latent + c.latent / moela::cpu::kMlaGroup * 4 + 2 * c.rope
                                 : (c.latent + c.rope) * size_of(c.dtype);
}

// Where the rows of at most `most` keys are: this is all that differs between mla_decode and mla_sparse.
// Returns how many there are.
inline int64_t locate_rows(const moela::cpu::MlaCache& cache, const moela::cpu::MlaKeys& keys, int64_t first,
                           int64_t most, const uint8_t** rows) {
  const auto* data = static_cast<const uint8_t*>(cache.data);
  constexpr int64_t kMostSlots = int64_t{1} << 31;  // a larger page is as good as one of these
  const auto page_size = static_cast<uint32_t>(cache.page_size < kMostSlots ? cache.page_size : kMostSlots);
  int64_t count = 0;
  for (int64_t key = first; key < keys.count && count < most; ++key) {
    int64_t page, slot;
    if (keys.pages != nullptr) {
      page = keys.pages[key / cache.page_size];
      slot = key % cache.page_size;
    } else {
      const auto number = static_cast<uint32_t>(keys.slots[key]);
      page = number / page_size;
      slot = number % page_size;
    }
    rows[count++] = data + page * cache.page_bytes + slot * cache.slot_bytes;
  }
  return count;
}

// The rows of the keys of a query, a tile at a time. While a tile is multiplied, those of the next one are
// converted, a few at a time, and those of the one after that are fetched: the stores of conversion, which
// miss L1, and the way from memory end behind multiply-adds.
class MlaRows {
 public:
  MlaRows(const moela::cpu::MlaCache& cache, const moela::cpu::MlaKeys& keys, int64_t begin, int64_t end)
      : cache_(cache), keys_(keys), next_(begin), end_(end) {
    locate(begin, tiles_[0]);
    locate(begin + kMlaTokens, tiles_[1]);
  }

  // Converts what of the next tile is not converted yet, and goes on. Returns its tokens, 0 after the last.
  int64_t take(float* panels) {
    const int64_t tokens = count();
    convert(tokens, panels);
    converted_ = 0;
    next_ += tokens;
    locate(next_ + kMlaTokens, tiles_[front_]);
    front_ ^= 1;
    return tokens;
  }

  // `more` rows of the next tile into its panels; columns beyond D stay as they are.
  void convert(int64_t more, float* panels) {
    const int64_t D = cache_.latent + cache_.rope;
    const int64_t most = count(), end = converted_ + more < most ? converted_ + more : most;
    for (; converted_ < end; ++converted_) {
      const uint8_t* row = tiles_[front_].rows[converted_];
      float* to = panels + converted_ * kMlaPanel;
      switch (cache_.dtype) {
        case Dtype::kBFloat16: fill_row<uint16_t>(row, D, to, from_bfloat16); break;
        case Dtype::kFloat16: fill_row<uint16_t>(row, D, to, from_float16); break;
        case Dtype::kFloat32: fill_row<float>(row, D, to, [](float x) { return x; }); break;
        default: fill_bytes(row, cache_, to);
      }
    }
  }

  // Of the tile after the next one, also where it is of the next part.
  MlaPrefetcher prefetcher() const {
    const Tile& tile = tiles_[front_ ^ 1];
    return MlaPrefetcher(tile.rows, tile.count, mla_row_bytes(cache_));
  }

 private:
  struct Tile {
    const uint8_t* rows[kMlaTokens];
    int64_t count;
  };

  // Tokens of the next tile that are of this part.
  int64_t count() const { return end_ - next_ < kMlaTokens ? end_ - next_ : kMlaTokens; }

  void locate(int64_t first, Tile& tile) const {
    tile.count = locate_rows(cache_, keys_, first, kMlaTokens, tile.rows);
  }

  const moela::cpu::MlaCache& cache_;
  const moela::cpu::MlaKeys& keys_;
  int64_t next_, end_;  // keys
  int64_t converted_ = 0;
  int front_ = 0;  // which tile is next
  Tile tiles_[2];
};

}  // namespace
