// Matrix products of bfloat16 operands in the tiles of AMX. Part of
// gemm_kernel.h; compiled where the instruction set has them (docs/adr/0011).
//
// Takes what gemm_bf16.h takes: b of e4m3 codes or bfloat16, and rows of a that
// bfloat16 holds exactly. Bound: the DRAM rate of b up to about 64 rows, the
// rate of the tiles beyond.
//
// b is the left operand and a the right one: d.T = b @ a.T. The left one has
// columns of K side by side, as b has them, so weights are decoded and nothing
// of them is transposed; pairs of rows of a are interleaved when they are
// packed. Thirty-two rows of b and 256 columns of K make a panel, which stays
// in L1 while all rows of a are multiplied with it. Beside the products of the last
// of them the next panel is decoded, 64 columns of K at a time, into the place of
// those that are done with (a second panel would fall out of L1), and its
// successors are prefetched, a line for every line. Tasks come several at once,
// so that a slab of a is read from L2 for all of them.
//
// Numerics for one element of d: every product is exact in float32. Per 128
// columns of K there are four tiles of 32 columns. For each, ascending, its
// even and its odd columns are summed by themselves, and these two sums are
// added to that of the block (tdpbf16ps: rounds to nearest even and takes
// subnormal numbers for zero). The sum times the scale factors is added to the
// total by one fused multiply-add. The first of two tiles has the columns with
// k / 8 even where b is of e4m3: unpacking bytes leaves them so.
#pragma once

#include "cpu/gemm_amx_pack.h"

namespace {

constexpr int kPanelRows = 2 * kTile;           // of b
constexpr int kPanelColumns = 2 * kBlock;       // of K: 16 KB
constexpr int kUnitColumns = 2 * kTileColumns;  // that are decoded at once: a line of codes
constexpr int kUnits = kPanelColumns / kUnitColumns;
constexpr int kTilesOfBlock = kBlock / kTileColumns;  // of columns
constexpr int64_t kMaxInL2 = 1 << 20;                 // bytes of a that are read again for each panel
constexpr int kAheadPanels = 2;                       // how far ahead of its use a panel of b is prefetched
static_assert(kPanelRows == kCols, "a panel has the columns of a task");

constexpr int kPanelWords = kPanelRows * kPanelColumns / 2;  // [tile of columns][row][pair of columns]

// Where the next panel comes from. It is decoded into the place of the one that is being multiplied.
struct NextPanel {
  const uint8_t* codes;
  int64_t ld;            // bytes
  const uint8_t* ahead;  // what is prefetched meanwhile, the panel that comes some panels later
  int64_t ahead_ld;
};

// Writes kPanelRows rows and kUnitColumns columns of b as bfloat16 into a panel.
template <class Codec>
MOELA_INLINE void decode_unit(const NextPanel& next, int64_t unit, uint32_t* panel) {
  constexpr int64_t kElement = sizeof(typename Codec::Element);
  [[maybe_unused]] const E4m3Decoder decoder;
  const uint8_t* codes = next.codes + unit * kUnitColumns * kElement;
  const int64_t ld = next.ld;
  uint32_t* words = panel + unit * 4 * kTileFloats;
  const uint8_t* ahead = next.ahead + unit * kPanelRows / kUnits * next.ahead_ld;
  for (int n = 0; n < kPanelRows; n += 4, ahead += next.ahead_ld) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, codes += ld, words += kTile) {
      for (int line = 0; line < kElement; ++line) prefetch_l2(ahead + (i * kElement + line) * kLine);
      I out[2];
      if constexpr (kElement == 1) {
        decoder.decode(load_words(codes), out);
      } else {
        out[0] = load_words(codes), out[1] = load_words(codes + kLine);
      }
      _mm512_store_si512(words, out[0]);  // a tile of the second half follows each
      _mm512_store_si512(words + 2 * kTileFloats, out[1]);
    }
  }
}

// Totals of a panel's rows: [row tile][half of the rows of b][row of b][lane], lanes side by
// side.
struct PanelTotals {
  alignas(64) float sums[moela::plan::kMaxChunkRows / kTile][2][kTile][kTile];
};

// What a panel is multiplied with.
struct PanelProduct {
  uint32_t* words;       // of the panel
  const uint32_t* a;     // of the first row tile, at the first column
  const float* factors;  // [row tile][kBlocksPerSlab][lane], at the first block
  const float* sf;       // of b, one per block
  int64_t blocks;
  TileRows rows;
  int64_t tile_words;  // of a, from row tile to row tile
  float* totals;       // of the panel
  float* products;     // room for four tiles, and for four more
};

// One step of 32 columns: kWidth row tiles, the first of a block or another.
// What a tile holds is stored just before it begins anew: stores of all four
// after the last step would leave nothing to multiply (302 cycles for a block
// instead of 257).
template <int kWidth, bool kFirst>
MOELA_INLINE void multiply_step(const uint32_t* w, const uint32_t* a, int64_t tile_words, int64_t row_bytes,
                                float* products) {
  _tile_loadd(4, w, kLine);
  _tile_loadd(6, a, row_bytes);
  if constexpr (kFirst) {
    _tile_stored(0, products, row_bytes);
    _tile_zero(0);
  }
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kWidth == 2) {
    _tile_loadd(7, a + tile_words, row_bytes);
    if constexpr (kFirst) {
      _tile_stored(1, products + kTileFloats, row_bytes);
      _tile_zero(1);
    }
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_loadd(5, w + kTileFloats, kLine);
  if constexpr (kFirst) {
    _tile_stored(2, products + 2 * kTileFloats, row_bytes);
    _tile_zero(2);
  }
  _tile_dpbf16ps(2, 5, 6);
  if constexpr (kWidth == 2) {
    if constexpr (kFirst) {
      _tile_stored(3, products + 3 * kTileFloats, row_bytes);
      _tile_zero(3);
    }
    _tile_dpbf16ps(3, 5, 7);
  }
  asm volatile("" ::
                   : "memory");  // gcc 12 does not know what the instructions
                                 // read and write
}

// Adds a tile of products, times the factor of each lane, to its totals.
MOELA_INLINE void add_tile(const float* products, F factor, int64_t lanes, float* totals) {
  const auto add = [&](int64_t n) { store(totals + n, fma(load(products + n), factor, load(totals + n))); };
  if (lanes == kTile) {
#pragma GCC unroll 16
    for (int n = 0; n < kTileFloats; n += kTile) add(n);
  } else {
    for (int64_t n = 0; n < lanes * kTile; n += kTile) add(n);
  }
}

// Multiplies a panel with row tiles [begin, end), kWidth at a time. The products of a block are added to the
// totals in the course of the next block. With the last row tiles each part of the panel gives way to the
// next one.
template <class Codec, int kWidth>
__attribute__((noinline)) void multiply_panel(const PanelProduct& p, int64_t begin, int64_t end, bool is_last,
                                              const NextPanel& next) {
  const int64_t lanes = p.rows.lanes, step = kTile * lanes, row_bytes = 4 * lanes, tile_words = p.tile_words;
  const int64_t blocks = p.blocks;
  const I lane = _mm512_and_si512(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                  _mm512_set1_epi32(static_cast<int>(lanes - 1)));
  float* products = p.products;
  float* totals = products + 4 * kTileFloats;  // before the first block there is nothing to add
  F factors[kWidth];
  for (F& f : factors) f = zero();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t t = begin; t < end; t += kWidth) {
    const bool gives_way = is_last && t + kWidth >= end;
    uint32_t* w = p.words;
    const uint32_t* a = p.a + t * tile_words;
    for (int64_t b = 0; b < blocks; ++b) {
      multiply_step<kWidth, true>(w, a, tile_words, row_bytes, products);
      add_tile(products, factors[0], lanes, totals);
      multiply_step<kWidth, false>(w + 2 * kTileFloats, a + step, tile_words, row_bytes, products);
      add_tile(products + 2 * kTileFloats, factors[0], lanes, totals + kTileFloats);
      if (gives_way) decode_unit<Codec>(next, 2 * b, p.words);
      multiply_step<kWidth, false>(w + 4 * kTileFloats, a + 2 * step, tile_words, row_bytes, products);
      if constexpr (kWidth == 2)
        add_tile(products + kTileFloats, factors[1], lanes, totals + 2 * kTileFloats);
      multiply_step<kWidth, false>(w + 6 * kTileFloats, a + 3 * step, tile_words, row_bytes, products);
      if constexpr (kWidth == 2)
        add_tile(products + 3 * kTileFloats, factors[1], lanes, totals + 3 * kTileFloats);
      if (gives_way) decode_unit<Codec>(next, 2 * b + 1, p.words);
      w += kTilesOfBlock * 2 * kTileFloats;
      a += kTilesOfBlock * step;
      totals = p.totals + t * 2 * kTileFloats;
      for (int i = 0; i < kWidth; ++i)
        factors[i] = mul(set1(p.sf[b]), _mm512_permutexvar_ps(
                                            lane, load(p.factors + ((t + i) * kBlocksPerSlab + b) * lanes)));
    }
  }
  _tile_stored(0, products, row_bytes);
  _tile_stored(2, products + 2 * kTileFloats, row_bytes);
  if constexpr (kWidth == 2) {
    _tile_stored(1, products + kTileFloats, row_bytes);
    _tile_stored(3, products + 3 * kTileFloats, row_bytes);
  }
  asm volatile("" ::: "memory");
  for (int i = 0; i < kWidth; ++i) {
    add_tile(products + i * kTileFloats, factors[i], lanes, totals + 2 * i * kTileFloats);
    add_tile(products + (2 + i) * kTileFloats, factors[i], lanes, totals + (2 * i + 1) * kTileFloats);
  }
  if (is_last)
    for (int64_t unit = 2 * blocks; unit < kUnits; ++unit) decode_unit<Codec>(next, unit, p.words);
}

constexpr float kOnes[kBlocksPerSlab] = {1, 1, 1, 1, 1, 1, 1, 1};

// Columns of d that are computed at once. Rows of b share scale factors within
// a panel: panels end at multiples of kPanelRows.
struct Panels {
  explicit Panels(const Columns& columns)
      : begin(columns.n0),
        end(columns.n0 + columns.count),
        first(begin / kPanelRows),
        count(ceil_div(end, kPanelRows) - first) {}
  int64_t n0(int64_t i) const { return i == 0 ? begin : (first + i) * kPanelRows; }
  int64_t rows(int64_t i) const { return min_of((first + i + 1) * kPanelRows, end) - n0(i); }
  int64_t begin;
  int64_t end;
  int64_t first;
  int64_t count;
};

// sums[task][row][column] of the totals [column][row] of a panel, whose first
// column is `column`.
inline void store_totals(const PanelTotals& totals, const TileRows& rows, int64_t num_rows, int64_t column,
                         int64_t count, float* sums) {
  const bool is_task = column % kCols == 0;
  alignas(64) float copy[kTile * kCols];
  for (int64_t t = 0; t < rows.count; ++t) {
    const int64_t m0 = t * rows.lanes, lanes = min_of(rows.lanes, num_rows - m0);
    const auto row_of = [&](int64_t task) { return sums + (task * num_rows + m0) * kCols; };
    float* to = is_task ? row_of(column / kCols) : copy;
    for (int half = 0; half < 2; ++half) {
      const float* from = totals.sums[t][half][0];
      float* const half_of = to + half * kTile;
      if (rows.lanes < kTile) {
        for (int64_t m = 0; m < lanes; ++m)
          for (int n = 0; n < kTile; ++n) half_of[m * kCols + n] = from[n * rows.lanes + m];
        continue;
      }
      I q[kTile];
      load_quads(reinterpret_cast<const uint8_t*>(from), kLine, q);
#pragma GCC unroll 16
      for (int m = 0; m < kTile; ++m)
        if (m < lanes) _mm512_storeu_si512(half_of + m * kCols, q[m]);
    }
    if (is_task) continue;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t at = column + n;
      for (int64_t m = 0; m < lanes; ++m) row_of(at / kCols)[m * kCols + at % kCols] = copy[m * kCols + n];
    }
  }
}

// What a thread works in.
struct TileScratch {
  alignas(64) uint32_t panel[kPanelWords];
  alignas(64) float products[8 * kTileFloats];
  PanelTotals totals[kTasksAtOnce + 1];
  alignas(64) uint8_t staging[kPanelRows * kPanelColumns * 2];
};

// The panels of some columns, one after the other. Where a fits into L2 the rows of b are the outer loop, so
// that each is read front to back (one row of a: 3.0 to 3.7 ms instead of 5.7 for 4096 x 7168); where it does
// not, the slabs of a are, so that one of 256 columns stays there for all rows of b.
template <class Codec>
class PanelWalk {
 public:
  static constexpr int64_t kElement = sizeof(typename Codec::Element);
  static constexpr int64_t kRowBytes = kPanelColumns * kElement;
  PanelWalk(const GemmChunk& chunk, const Columns& columns, TileScratch& scratch)
      : chunk_(chunk),
        p_(*chunk.problem),
        columns_(columns),
        panels_(columns),
        rows_(chunk.num_rows),
        scratch_(scratch) {}

  void run(float* sums) {
    const Tiles tiles(rows_.lanes);
    for (int64_t i = 0; i < panels_.count; ++i)
      std::memset(&scratch_.totals[i], 0, rows_.count * sizeof scratch_.totals[0].sums[0]);
    NextPanel next = panel_at(0);
    for (int unit = 0; unit < kUnits; ++unit) decode_unit<Codec>(next, unit, scratch_.panel);
    for (int64_t step = 0; step < steps_; ++step) {
      next = panel_at(step + 1);
      multiply(step, next);
    }
    for (int64_t i = 0; i < panels_.count; ++i)
      store_totals(scratch_.totals[i], rows_, chunk_.num_rows, panels_.n0(i) - columns_.n0, panels_.rows(i),
                   sums);
  }

 private:
  int64_t k0(int64_t step) const { return (fits_ ? step % slabs_ : step / panels_.count) * kPanelColumns; }
  int64_t panel(int64_t step) const { return fits_ ? step / slabs_ : step % panels_.count; }

  // Where b is read in a step; after the last one, as far as one knows.
  const uint8_t* codes_of(int64_t step) const {
    if (step < steps_) return row_of_b(p_, panels_.n0(panel(step))) + k0(step) * kElement;
    return static_cast<const uint8_t*>(columns_.next) +
           (step - steps_) * (fits_ ? kRowBytes : kPanelRows * ld_);
  }

  // The rows of b and columns of K that exist, zeros beyond. After the last step, anything.
  NextPanel panel_at(int64_t step) {
    NextPanel next = {
        .codes = scratch_.staging, .ld = kRowBytes, .ahead = codes_of(step + kAheadPanels), .ahead_ld = ld_};
    if (step == steps_) return next;
    const int64_t rows = panels_.rows(panel(step)), cols = min_of(kPanelColumns, p_.K - k0(step));
    const uint8_t* codes = codes_of(step);
    if (rows == kPanelRows && cols == kPanelColumns) {
      next.codes = codes;
      next.ld = ld_;
      return next;
    }
    std::memset(scratch_.staging, 0, kPanelRows * kRowBytes);
    for (int64_t n = 0; n < rows; ++n)
      std::memcpy(scratch_.staging + n * kRowBytes, codes + n * ld_, cols * kElement);
    return next;
  }

  void multiply(int64_t step, const NextPanel& next) {
    const PackedSlab slab(chunk_, k0(step) / kSlab);
    const int64_t k = k0(step) - slab.k0, i = panel(step);
    const PanelProduct product = {.words = scratch_.panel,
                                  .a = slab.a + k / 2 * rows_.lanes,
                                  .factors = slab.factors + k / kBlock * rows_.lanes,
                                  .sf = Codec::kHasSf ? sf_of_row(p_, panels_.n0(i), k0(step)) : kOnes,
                                  .blocks = min_of(kPanelColumns, slab.padded - k) / kBlock,
                                  .rows = rows_,
                                  .tile_words = slab.tile_words,
                                  .totals = scratch_.totals[i].sums[0][0][0],
                                  .products = scratch_.products};
    const int64_t paired = rows_.count / 2 * 2;
    if (paired > 0) multiply_panel<Codec, 2>(product, 0, paired, paired == rows_.count, next);
    if (paired < rows_.count) multiply_panel<Codec, 1>(product, paired, rows_.count, true, next);
  }

  const GemmChunk& chunk_;
  const GemmProblem& p_;
  const Columns& columns_;
  Panels panels_;
  TileRows rows_;
  TileScratch& scratch_;
  int64_t ld_ = p_.stride_bn * kElement;  // bytes
  int64_t slabs_ = ceil_div(p_.K, kPanelColumns);
  int64_t steps_ = slabs_ * panels_.count;
  bool fits_ = rows_.count * rows_.lanes * p_.K * 2 <= kMaxInL2;
};

void bf16_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  static thread_local TileScratch scratch;
  if (chunk.problem->b_dtype == Dtype::kE4m3) {
    PanelWalk<E4m3Codec>(chunk, columns, scratch).run(sums);
  } else {
    PanelWalk<BFloat16Codec>(chunk, columns, scratch).run(sums);
  }
}

}  // namespace
