// The products of a tile of queries and a tile of keys, in register tiles. Part of the mla_prefill kernels.
//
// All are c[m][n] = sum over k of a(m, k) * b[k][n]: a is broadcast, n lies in the lanes, and k is one chain
// of fused multiply-adds, ascending. What is multiplied lies as a load leaves it, so nothing is transposed
// but queries, once per tile.
#pragma once

#include "cpu/mla_prefill.h"
#include "cpu/simd.h"

namespace {

constexpr int64_t kPrefillRows = moela::cpu::kPrefillTile;
constexpr int64_t kPrefillPanel = 16;  // columns of a panel
// From panel to panel: an odd number of cache lines, so that a row spreads over all sets of L1.
constexpr int64_t kPrefillPanelFloats = (kPrefillRows + 1) * kPrefillPanel;
// Rows of c whose chains have the same length.
constexpr int64_t kPrefillGroup = 12;

// Register tiles: rows x vectors.
#if defined(MOELA_SIMD_AVX512)
constexpr int kPrefillTileRows = 12, kPrefillVecs = 2;
#elif defined(MOELA_SIMD_AVX2)
constexpr int kPrefillTileRows = 6, kPrefillVecs = 2;
#elif defined(MOELA_SIMD_NEON)
constexpr int kPrefillTileRows = 6, kPrefillVecs = 4;
#else
constexpr int kPrefillTileRows = 2, kPrefillVecs = 4;
#endif
constexpr int64_t kPrefillCols = kPrefillVecs * kLanes;
static_assert(kPrefillGroup % kPrefillTileRows == 0, "a register tile must not straddle two groups");
static_assert(kPrefillRows % kPrefillGroup == 0, "groups would not fill a tile");
static_assert(32 % kPrefillCols == 0, "register tiles would read beyond padded columns");

// Where a(m, k) lies: m * kM + k % 16 * kK + k / 16 * kBlock.
struct InPanels {  // keys or values, [column / 16][row][column % 16]; m a row, k a column
  static constexpr int64_t kM = kPrefillPanel, kK = 1, kBlock = kPrefillPanelFloats;
};
struct OfKey {  // weights [key][query]; m a key, k a query
  static constexpr int64_t kM = kPrefillRows, kK = 1, kBlock = 16;
};
struct OfQuery {  // weights [key][query]; m a query, k a key
  static constexpr int64_t kM = 1, kK = kPrefillRows, kBlock = 16 * kPrefillRows;
};

// c = the product, c + the product, c * factor of the row + the product.
struct Store {
  MOELA_INLINE F operator()(const float*, F product, int64_t) const { return product; }
};
struct Add {
  MOELA_INLINE F operator()(const float* c, F product, int64_t) const { return add(load(c), product); }
};
struct RescaleAndAdd {
  const float* factors;
  MOELA_INLINE F operator()(const float* c, F product, int64_t m) const {
    return fma(load(c), set1(factors[m]), product);
  }
};

template <class A, int kRows, class To>
__attribute__((noinline)) void prefill_register_tile(const float* a, const float* b, int64_t ldb, int64_t K,
                                                     float* c, int64_t ldc, int64_t m0, To to) {
  F acc[kRows][kPrefillVecs];
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kPrefillVecs; ++v) acc[m][v] = zero();
  for (int64_t k0 = 0; k0 < K; k0 += 16, a += A::kBlock) {
    const int64_t count = K - k0 < 16 ? K - k0 : 16;
    const float* x = a;
    for (int64_t k = 0; k < count; ++k, b += ldb, x += A::kK) {
      F right[kPrefillVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kPrefillVecs; ++v) {
        right[v] = load(b + v * kLanes);
        pin(right[v]);  // gcc 12 would load it again for every row
      }
#pragma GCC unroll 32
      for (int m = 0; m < kRows; ++m) {
        const F left = set1(x[m * A::kM]);
#pragma GCC unroll 4
        for (int v = 0; v < kPrefillVecs; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
      }
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kPrefillVecs; ++v) {
      float* at = c + m * ldc + v * kLanes;
      store(at, to(at, acc[m][v], m0 + m));
    }
}

// c[rows m0 ... of it][cols]; as many rows more as make a whole register tile are written, cols whole
// vectors.
template <class A, int kRows = kPrefillTileRows, class To>
void prefill_product(const float* a, int64_t m0, int64_t rows, const float* b, int64_t ldb, int64_t cols,
                     int64_t K, float* c, int64_t ldc, To to) {
  for (int64_t n = 0; n < cols; n += kPrefillCols)
    for (int64_t m = m0; m < m0 + rows; m += kRows)
      prefill_register_tile<A, kRows>(a + m * A::kM, b + n, ldb, K, c + m * ldc + n, ldc, m, to);
}

// Rows as [row][ld]; columns beyond `columns` stay as they are.
inline void load_rows(const moela::cpu::HeadRows& from, Dtype dtype, int64_t token, int64_t head,
                      int64_t count, int64_t columns, float* rows, int64_t ld) {
  for (int64_t t = 0; t < count; ++t)
    load_floats(from.data, dtype, from.at(token + t, head), columns, rows + t * ld);
}

template <class Element, class ToFloat>
MOELA_INLINE void panels_of_rows(const Element* x, int64_t stride, int64_t count, int64_t columns,
                                 float* panels, const ToFloat& to_float) {
  for (int64_t t = 0; t < count; ++t, x += stride, panels += kPrefillPanel) {
    float* to = panels;
    int64_t k = 0;
    for (; k + kPrefillPanel <= columns; k += kPrefillPanel, to += kPrefillPanelFloats)
      for (int i = 0; i < kPrefillPanel; ++i) to[i] = to_float(x[k + i]);
    for (int64_t i = 0; k + i < columns; ++i) to[i] = to_float(x[k + i]);
  }
}

// Rows as panels; columns beyond `columns` stay as they are.
inline void load_panels(const moela::cpu::HeadRows& from, Dtype dtype, int64_t token, int64_t head,
                        int64_t count, int64_t columns, float* panels) {
  const int64_t at = from.at(token, head);
  const auto* halves = static_cast<const uint16_t*>(from.data) + at;
  if (dtype == Dtype::kBFloat16)
    panels_of_rows(halves, from.stride_t, count, columns, panels, from_bfloat16);
  else if (dtype == Dtype::kFloat16)
    panels_of_rows(halves, from.stride_t, count, columns, panels, from_float16);
  else
    panels_of_rows(static_cast<const float*>(from.data) + at, from.stride_t, count, columns, panels,
                   [](float x) { return x; });
}

// Rows as [column][kPrefillRows], zeros in the columns and rows that there are not.
inline void load_transposed(const moela::cpu::HeadRows& from, Dtype dtype, int64_t token, int64_t head,
                            int64_t count, int64_t columns, int64_t padded, float* to) {
  constexpr int64_t kBlock = 16;
  for (int64_t k = 0; k < padded; k += kBlock)
    for (int64_t t = 0; t < kPrefillRows; t += kBlock) {
      alignas(64) float block[kBlock][kBlock] = {};
      const int64_t n = columns - k < kBlock ? columns - k : kBlock;
      for (int64_t i = 0; i < kBlock && t + i < count && n > 0; ++i)
        load_floats(from.data, dtype, from.at(token + t + i, head) + k, n, block[i]);
      for (int64_t j = 0; j < kBlock; ++j)
        for (int64_t i = 0; i < kBlock; ++i) to[(k + j) * kPrefillRows + t + i] = block[i][j];
    }
}

}  // namespace
