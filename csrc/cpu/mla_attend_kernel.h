// Attention over a latent cache on the CPU: some heads of queries over some keys. Bound: the float32
// multiply-add rate.
//
// A tile of keys is converted to float32 once for all rows, into panels that stay in L2, while the tile
// before it is multiplied. Scores, softmax and weighted values of the tile follow; sums are scaled again
// where the maximum has grown. Queries that see other keys of the tile are multiplied one after the other.
//
// Numerics of one head: scores are chains of fused multiply-adds over 192 columns, ascending, whose sums are
// added in order and multiplied by sm_scale. Weights are e^(score - maximum so far); their sum and the chains
// of weighted values ascend over the keys of a tile of 96. Tiles and parts begin at fixed keys, so bits
// depend on nothing else.
#pragma once

#include <utility>

#include "cpu/exp_log.h"
#include "cpu/mla_attend.h"
#include "cpu/mla_rows.h"
#include "cpu/mla_tile.h"

namespace {

using moela::cpu::kMlaBlock;
using moela::cpu::kMlaMostRows;
using moela::cpu::MlaProblem;
using moela::cpu::MlaQueries;
using moela::cpu::MlaSums;

constexpr int64_t kMlaQueryRows = 64;  // of a part
static_assert(kMlaQueryRows <= kMlaMostRows, "a part would not fit in its scratch");

inline int64_t mla_scratch_floats(const MlaProblem& p) {
  return 2 * (kMlaTokens + 1) * p.padded_D() + (kMlaTokens + 1) * kMlaMostRows;
}

// Less than every score, and finite: its difference to itself is 0.
constexpr float kNoScore = -0x1.fffffep127f;

// Rows are packed in blocks of sixteen, [column][16]: of those that are multiplied together, in vectors.
inline const float* packed_row(const MlaProblem& p, const float* packed, int64_t row) {
  return packed + row / kMlaPanel * kMlaPanel * p.padded_D() + row % kMlaPanel;
}

// The rows of query `i`, to `packed`.
inline void mla_pack_query(const MlaProblem& p, const MlaQueries& q, int64_t i, float* packed) {
  const int64_t D = p.D(), padded = p.padded_D();
  std::memset(packed, 0, q.padded_heads() * padded * sizeof(float));
  for (int64_t h = 0; h < q.num_heads; ++h) {
    float* to = packed + h / kMlaPanel * kMlaPanel * padded + h % kMlaPanel;
    const int64_t row = q.q_offset + i * p.stride_qt + h * p.stride_qh;
    constexpr int64_t kPiece = 256;
    alignas(64) float piece[kPiece];
    for (int64_t k = 0; k < D; k += kPiece) {
      const int64_t n = D - k < kPiece ? D - k : kPiece;
      load_floats(p.q, p.q_dtype, row + k, n, piece);
      for (int64_t c = 0; c < n; ++c) to[(k + c) * kMlaPanel] = piece[c];
    }
  }
}

void mla_pack(const MlaProblem& p, const MlaQueries& q) {
  [[maybe_unused]] const ExactSubnormals guard;
  for (int64_t i = 0; i < q.count; ++i)
    mla_pack_query(p, q, i, q.packed + i * q.padded_heads() * p.padded_D());
}

// Scores of a tile [tokens][rows] to weights; `rescale`: by what it rescales what was summed. The loops over
// rows are vectorized.
inline void softmax_tile(const MlaSums& s, int64_t rows, float sm_scale, int64_t tokens, float* scores,
                         float* rescale) {
  alignas(64) float max[kMlaMostRows], sum[kMlaMostRows];
  for (int64_t h = 0; h < rows; ++h) max[h] = s.max[h];
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < rows; ++h) {
      const float score = scores[t * rows + h] * sm_scale;
      scores[t * rows + h] = score;
      max[h] = score > max[h] ? score : max[h];
    }
  for (int64_t h = 0; h < rows; ++h) {
    rescale[h] = exp_nonpositive(s.max[h] - max[h]);
    s.max[h] = max[h];
    sum[h] = 0.f;
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < rows; ++h) {
      const float weight = exp_nonpositive(scores[t * rows + h] - max[h]);
      scores[t * rows + h] = weight;
      sum[h] += weight;
    }
  for (int64_t h = 0; h < rows; ++h) s.weights[h] = s.weights[h] * rescale[h] + sum[h];
}

// A tile of keys for some rows.
struct MlaTile {
  const float* panels;
  int64_t tokens;
  const float* packed;
  MlaSums sums;
  int64_t rows;  // and those that fill the last block
  float *scores, *rescale;

  int64_t padded_rows() const { return moela::cpu::mla_padded_heads(rows); }
};

// Between two products calls work(), `times` times in all or less.
template <class Work>
inline void attend_tile(const MlaProblem& p, const MlaTile& tile, MlaPrefetcher& prefetcher,
                        const Work& work) {
  const int64_t ld = p.padded_latent(), padded = p.padded_D(), num_panels = padded / kMlaPanel;
  const int64_t rows = tile.rows, lds = tile.padded_rows(), block = kMlaPanel * padded;
  prefetcher.spread(tile.tokens * lds * padded / (kMlaRows * kMlaCols * kMlaColumnsOfStep) + 1);
  int64_t row = 0;
  for (; row + kMlaCols - kLanes < rows; row += kMlaCols)
    scores_of_rows<kMlaRows, kMlaVecs>(tile.panels, num_panels, packed_row(p, tile.packed, row), block,
                                       tile.tokens, tile.scores + row, lds, prefetcher);
  for (; row < rows; row += kLanes)
    scores_of_rows<kMlaRowsOfOne, 1>(tile.panels, num_panels, packed_row(p, tile.packed, row), block,
                                     tile.tokens, tile.scores + row, lds, prefetcher);
  softmax_tile(tile.sums, lds, p.sm_scale, tile.tokens, tile.scores, tile.rescale);

  const int64_t tiles = (rows + kMlaRows - 1) / kMlaRows;
  const int64_t base = rows / tiles, larger = rows % tiles;  // rows of a register tile
  const ValueTile tile_of[] = {value_tile_for(base), value_tile_for(base + 1)};
  prefetcher.spread(tile.tokens * tiles * (ld / kMlaCols));
  for (int64_t column = 0; column < ld; column += kMlaCols) {
    const float* values = tile.panels + column / kMlaPanel * kMlaPanelFloats + column % kMlaPanel;
    row = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const bool is_larger = t < larger;
      tile_of[is_larger](tile.scores + row, lds, values, tile.tokens, tile.rescale + row,
                         tile.sums.values + row * ld + column, ld, prefetcher);
      row += base + is_larger;
      work();
    }
  }
}

// Queries [from, to), whose rows are packed one query after the other.
inline void attend_queries(const MlaProblem& p, const MlaQueries& q, int64_t from, int64_t to, int64_t part,
                           const float* packed, float* scratch) {
  const int64_t heads = q.padded_heads(), padded = p.padded_D(), ld = p.padded_latent();
  const int64_t panel_floats = padded / kMlaPanel * kMlaPanelFloats, rows = (to - from) * heads;
  float* panels = scratch;
  float* panels_of_next = panels + panel_floats;
  float* scores = panels_of_next + panel_floats;
  const MlaSums sums = mla_sums(p, q, part, from);
  std::memset(sums.values, 0, rows * ld * sizeof(float));
  std::memset(sums.weights, 0, rows * sizeof(float));
  for (int64_t row = 0; row < rows; ++row) sums.max[row] = kNoScore;
  if (padded != p.D()) std::memset(panels, 0, 2 * panel_floats * sizeof(float));

  const moela::cpu::MlaKeys keys = q.keys_of(to - 1);
  const int64_t first = part * moela::cpu::kMlaSplit, left = keys.count - first;
  MlaRows rows_of_keys(p.cache, keys, first,
                       first + (left < moela::cpu::kMlaSplit ? left : moela::cpu::kMlaSplit));
  const int64_t products = ((to - from) * q.num_heads + kMlaRows - 1) / kMlaRows * (ld / kMlaCols);
  for (int64_t key = first, tokens; (tokens = rows_of_keys.take(panels)) > 0; key += tokens) {
    MlaPrefetcher prefetcher = rows_of_keys.prefetcher();
    const auto attend = [&](int64_t i, int64_t num_rows, int64_t seen) {
      attend_tile(p,
                  {.panels = panels,
                   .tokens = seen < tokens ? seen : tokens,
                   .packed = packed + (i - from) * heads * padded,
                   .sums = mla_sums(p, q, part, i),
                   .rows = num_rows,
                   .scores = scores,
                   .rescale = scores + kMlaTokens * kMlaMostRows},
                  prefetcher, [&] { rows_of_keys.convert(kMlaTokens / products + 1, panels_of_next); });
    };
    if (heads == q.num_heads && q.num_keys(from) - key >= tokens)
      attend(from, rows, tokens);
    else
      for (int64_t i = from; i < to; ++i)
        if (q.num_keys(i) > key) attend(i, q.num_heads, q.num_keys(i) - key);
    std::swap(panels, panels_of_next);
  }
}

void mla_attend(const MlaProblem& p, const MlaQueries& q, int64_t part, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  attend_queries(p, q, 0, q.count, part, q.packed, scratch);
}

// Adds the parts of a block of rows in order and divides, by the weight of the sink too.
void mla_merge(const MlaProblem& p, const MlaQueries& q, int64_t block) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t ld = p.padded_latent(), L = p.cache.latent, num_parts = q.num_parts();
  const int64_t i = block / q.padded_heads(), first = block % q.padded_heads();
  const int64_t end = first + kMlaBlock < q.num_heads ? first + kMlaBlock : q.num_heads;
  for (int64_t h = first; h < end; ++h) {
    const int64_t row = (q.index + i) * p.H + q.head + h;
    const auto max_of = [&](int64_t part) { return mla_sums(p, q, part, i).max[h]; };
    float max = kNoScore, total = 0.f;
    for (int64_t part = 0; part < num_parts; ++part) max = max_of(part) > max ? max_of(part) : max;
    for (int64_t part = 0; part < num_parts; ++part)
      total += mla_sums(p, q, part, i).weights[h] * exp_nonpositive(max_of(part) - max);
    // Without keys there is no weight, and none where every score is -Inf. NaN is some.
    const bool has_weight = total != 0.f;
    p.lse[row] = has_weight ? max + log_of(total) : -__builtin_inff();
    if (p.attn_sink != nullptr) {
      const float sink = p.attn_sink[q.head + h], larger = sink > max ? sink : max;
      // Infinite, it is as heavy as what is larger than every score.
      total = total * exp_nonpositive(max - larger) + (sink == larger ? 1.f : exp_nonpositive(sink - larger));
      max = larger;
    }
    constexpr int64_t kPiece = 512;
    alignas(64) float sum[kPiece];
    for (int64_t k = 0; k < L; k += kPiece) {
      const int64_t n = L - k < kPiece ? L - k : kPiece;
      for (int64_t c = 0; c < n; ++c) sum[c] = 0.f;
      for (int64_t part = 0; part < num_parts; ++part) {
        const float* from = mla_sums(p, q, part, i).values + h * ld + k;
        const float factor = exp_nonpositive(max_of(part) - max);
        for (int64_t c = 0; c < n; ++c) sum[c] += factor * from[c];
      }
      if (has_weight)
        for (int64_t c = 0; c < n; ++c) sum[c] /= total;
      store_floats(sum, n, p.q_dtype, p.out, row * L + k);
    }
  }
}

constexpr moela::cpu::MlaKernels kMlaKernels = {kMlaQueryRows, mla_scratch_floats, mla_pack, mla_attend,
                                                mla_merge};

}  // namespace
