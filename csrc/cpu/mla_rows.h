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

// The rows of the keys of a query, a tile at a time. While a tile is multiplied, those of the next one are
// first fetched and then converted, a few at a time: their stores, which miss L1, end behind multiply-adds.
class MlaRows {
 public:
  MlaRows(const moela::cpu::MlaCache& cache, const moela::cpu::MlaKeys& keys, int64_t begin, int64_t end)
      : cache_(cache), keys_(keys), next_(begin), end_(end) {
    locate();
  }

  // Converts what of the next tile is not converted yet, and goes on. Returns its tokens, 0 after the last.
  int64_t take(float* panels) {
    convert(count_, panels);
    const int64_t tokens = count_;
    locate();
    return tokens;
  }

  // The next `count` rows of the next tile into its panels; columns beyond D stay as they are.
  void convert(int64_t count, float* panels) {
    const int64_t D = cache_.latent + cache_.rope;
    for (; count > 0 && converted_ < count_; --count, ++converted_) {
      const uint8_t* row = rows_[converted_];
      float* to = panels + converted_ * kMlaPanel;
      switch (cache_.dtype) {
        case Dtype::kBFloat16: fill_row<uint16_t>(row, D, to, from_bfloat16); break;
        case Dtype::kFloat16: fill_row<uint16_t>(row, D, to, from_float16); break;
        case Dtype::kFloat32: fill_row<float>(row, D, to, [](float x) { return x; }); break;
        default: fill_bytes(row, cache_, to);
      }
    }
  }

  // Of the next tile, also where it is of the next part.
  MlaPrefetcher prefetcher() const { return MlaPrefetcher(rows_, located_, mla_row_bytes(cache_)); }

 private:
  // Where the rows of the next tile are: this is all that differs between mla_decode and mla_sparse.
  void locate() {
    count_ = end_ - next_ < kMlaTokens ? end_ - next_ : kMlaTokens;
    located_ = keys_.count - next_ < kMlaTokens ? keys_.count - next_ : kMlaTokens;
    converted_ = 0;
    const auto* data = static_cast<const uint8_t*>(cache_.data);
    const auto page_size = static_cast<uint32_t>(cache_.page_size);
    for (int64_t t = 0; t < located_; ++t) {
      const int64_t key = next_ + t;
      int64_t page, slot;
      if (keys_.pages != nullptr) {
        page = keys_.pages[key / cache_.page_size];
        slot = key % cache_.page_size;
      } else {
        const auto number = static_cast<uint32_t>(keys_.slots[key]);
        page = number / page_size;
        slot = number % page_size;
      }
      rows_[t] = data + page * cache_.page_bytes + slot * cache_.slot_bytes;
    }
    next_ += count_;
  }

  const moela::cpu::MlaCache& cache_;
  const moela::cpu::MlaKeys& keys_;
  int64_t next_, end_;
  int64_t located_;    // rows of the next tile
  int64_t count_;      // of them in this part
  int64_t converted_;  // of these
  const uint8_t* rows_[kMlaTokens];
};

}  // namespace
