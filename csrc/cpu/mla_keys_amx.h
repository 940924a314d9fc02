// Keys of a latent cache as the tiles of AMX multiply them. Part of mla_attend_amx.h.
//
// Rows of bfloat16 are multiplied where they lie, if a step apart, or from a copy. Rows of bytes are decoded
// to a copy: code times scale factor, rounded to bfloat16, which loses nothing if the factor is a power of
// two.
#pragma once

#include "cpu/amx_attend.h"
#include "cpu/mla_attend.h"
#include "cpu/mla_tile.h"

namespace {

constexpr int64_t kMlaTileKeys = 192;
constexpr int64_t kMlaPairBlock = pair_block_floats(kMlaTileKeys / 2);

inline bool is_of_bytes(const moela::cpu::MlaProblem& p) { return p.cache.dtype == Dtype::kE4m3; }

// Whether what a row of bytes decodes to is ordinary: codes are 0 or 2^-9 to 448 in size. Where all of a
// group are 0, their scale factor is the least normal number (mla_cache_write).
inline bool are_codes_ordinary(const moela::cpu::MlaCache& cache, const uint8_t* row) {
  constexpr int64_t kGroup = moela::cpu::kMlaGroup;
  static_assert(kGroup == 128, "the codes of a group are two vectors");
  const I is_nan = _mm512_set1_epi8(static_cast<char>(0xFE));
  for (int64_t k = 0; k < cache.latent; k += kGroup) {
    const I x = _mm512_loadu_si512(row + k), y = _mm512_loadu_si512(row + k + 64);
    const I most = _mm512_max_epu8(_mm512_add_epi8(x, x), _mm512_add_epi8(y, y));  // twice, without the sign
    float sf;
    std::memcpy(&sf, row + cache.latent + k / kGroup * sizeof sf, sizeof sf);
    const float size = __builtin_fabsf(sf);
    const bool is_small = size <= 0x1p41f;  // NaN is not
    if (!is_small || _mm512_cmpeq_epi8_mask(most, is_nan) != 0) return false;
    if (size < 0x1p-41f && size != 0.f && _mm512_test_epi8_mask(most, most) != 0) return false;
  }
  return true;
}

// Columns [k, k + 32) of the latent.
MOELA_INLINE I decode_columns(const moela::cpu::MlaCache& cache, const uint8_t* row, int64_t k) {
  float sf;
  std::memcpy(&sf, row + cache.latent + k / moela::cpu::kMlaGroup * sizeof sf, sizeof sf);
  const F factor = set1(sf * 0x1p8f);
  // As float16 a code is 2^-8 of itself.
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + k));
  const I halves = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7),
                                    _mm512_set1_epi16(static_cast<int16_t>(0xBF80)));
  const F x = mul(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)), factor);
  const F y = mul(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)), factor);
  return reinterpret_cast<I>(_mm512_cvtne2ps_pbh(y, x));
}

// Makes 32 rows the first operand of scores: where they lie, or a copy, [column / 32][32 keys][16 words].
// Sees columns beyond those of values.
class MlaKeyTile {
 public:
  MlaKeyTile(const moela::cpu::MlaProblem& p, const uint8_t* const* rows, float* copy, Ordinary& ordinary)
      : rows_(rows),
        cache_(&p.cache),
        copy_(copy),
        ordinary_(&ordinary),
        D_(p.D()),
        values_(p.padded_latent()),
        codes_(is_of_bytes(p) ? p.cache.latent : 0),
        shift_(codes_ / moela::cpu::kMlaGroup * 4 - codes_) {
    const int64_t step = rows[1] - rows[0];
    are_tiles_ = codes_ == 0 && D_ % kTileColumns == 0 && step % 4 == 0;
    for (int64_t t = 1; are_tiles_ && t < kTileColumns; ++t) are_tiles_ = rows[t] - rows[t - 1] == step;
  }

  // 32 columns.
  MOELA_INLINE void step() {
    if (column_ >= D_) return;
    const int64_t column = column_;
    const __mmask32 live = tile_columns(D_ - column);
    float* copy = copy_ + column * kTile;
    const auto columns = [&](int64_t t) { return load_columns(rows_[t] + shift_, column, live); };
    if (column < codes_)
      for (int64_t t = 0; t < kTileColumns; ++t)
        _mm512_storeu_si512(copy + t * kTile, decode_columns(*cache_, rows_[t], column));
    else if (!are_tiles_)
      for (int64_t t = 0; t < kTileColumns; ++t) _mm512_storeu_si512(copy + t * kTile, columns(t));
    if (column >= values_)
      for (int64_t t = 0; t < kTileColumns; ++t) ordinary_->see(columns(t));
    column_ += kTileColumns;
  }

  TileOperand operand() {
    while (column_ < D_) step();
    const int64_t row = (rows_[1] - rows_[0]) / 4;
    if (are_tiles_)
      return {.words = reinterpret_cast<const float*>(rows_[0]),
              .row = row,
              .second = row * kTile,
              .step = kTile};
    return {.words = copy_, .row = kTile, .second = kTileFloats, .step = 2 * kTileFloats};
  }

 private:
  const uint8_t* const* rows_;
  const moela::cpu::MlaCache* cache_;
  float* copy_;
  Ordinary* ordinary_;
  int64_t D_, values_;
  int64_t codes_;  // columns that are codes
  int64_t shift_;  // of the other ones, in bytes, to where they would be if codes were bfloat16
  int64_t column_ = 0;
  bool are_tiles_;
};

// Rows of bfloat16, of which 32 columns follow each other, and the next 32 lie `step` bytes on.
struct MlaTileRows {
  const uint8_t* const* rows;
  int64_t step;
};

// Makes 32 columns of some rows the second operand of values. Sees them, and fetches lines of the next tile.
class MlaPairs {
 public:
  MlaPairs(const moela::cpu::MlaProblem& p, const MlaTileRows& tile, int64_t count, int64_t column,
           float* pairs, Ordinary& ordinary, MlaPrefetcher& next)
      : rows_(tile.rows),
        end_(tile.rows + count),
        pairs_(pairs),
        offset_(column / kTileColumns * tile.step),
        ordinary_(&ordinary),
        next_(&next),
        live_(tile_columns(p.D() - column)) {}

  // 32 rows.
  MOELA_INLINE void step() {
    if (rows_ == end_) return;
    // Copies of members, which stores to memory would make it load again.
    const auto *rows = rows_, *end = rows_ + kTileColumns;
    const int64_t offset = offset_;
    const __mmask32 live = live_;
    float* pairs = pairs_;
    Ordinary ordinary = *ordinary_;
    MlaPrefetcher next = *next_;
    for (; rows != end; rows += 4) {
#pragma GCC unroll 2
      for (int t = 0; t < 4; t += 2, pairs += kTile) {
        const I x = load_columns(rows[t] + offset, 0, live), y = load_columns(rows[t + 1] + offset, 0, live);
        ordinary.see(x);
        ordinary.see(y);
        store_pairs(x, y, 0, kMlaPairBlock, pairs);
      }
      next.step();
    }
    *ordinary_ = ordinary;
    *next_ = next;
    rows_ = rows;
    pairs_ = pairs;
  }
  void finish() {
    while (rows_ != end_) step();
  }

 private:
  const uint8_t *const *rows_, *const *end_;
  float* pairs_;
  int64_t offset_;
  Ordinary* ordinary_;
  MlaPrefetcher* next_;
  __mmask32 live_;
};

}  // namespace
