// Attention over a latent cache on the CPU: some heads of a query over some keys. Bound: the float32
// multiply-add rate.
//
// A tile of keys is converted to float32 once for all heads, into panels that stay in L2, while the tile
// before it is multiplied. Scores, softmax and weighted values of the tile follow; sums are scaled again
// where the maximum has grown.
//
// Numerics of one head: scores are chains of fused multiply-adds over 192 columns, ascending, whose sums are
// added in order and multiplied by sm_scale. Weights are e^(score - maximum so far); their sum and the chains
// of weighted values ascend over the keys of a tile of 96. Tiles and parts begin at fixed keys, so bits
// depend on nothing else.
#pragma once

#include "cpu/exp_log.h"
#include "cpu/mla_attend.h"
#include "cpu/mla_rows.h"
#include "cpu/mla_tile.h"

namespace {

using moela::cpu::kMlaMostHeads;
using moela::cpu::MlaProblem;
using moela::cpu::MlaQuery;

constexpr int64_t kMlaHeads = 64;  // of a part
static_assert(kMlaHeads <= kMlaMostHeads, "a part would not fit in its scratch");

inline int64_t mla_scratch_floats(const MlaProblem& p) {
  return 2 * (kMlaTokens + 1) * p.padded_D() + (kMlaTokens + 1) * kMlaMostHeads;
}

// Less than every score, and finite: its difference to itself is 0.
constexpr float kNoScore = -0x1.fffffep127f;

// Vectors of heads that are multiplied together begin at this head; each has [column][its heads] in `packed`.
template <class Visit>
MOELA_INLINE void for_vectors_of_heads(int64_t num_heads, const Visit& visit) {
  int64_t head = 0;
  for (; head + kMlaCols - kLanes < num_heads; head += kMlaCols) visit(head, kMlaCols);
  for (; head < num_heads; head += kLanes) visit(head, kLanes);
}

void mla_pack(const MlaProblem& p, const MlaQuery& q) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t D = p.D(), padded = p.padded_D();
  std::memset(q.packed, 0, moela::cpu::mla_packed_floats(p, q) * sizeof(float));
  for_vectors_of_heads(q.num_heads, [&](int64_t first, int64_t width) {
    float* to = q.packed + first * padded;
    const int64_t count = q.num_heads - first < width ? q.num_heads - first : width;
    for (int64_t h = 0; h < count; ++h) {
      const int64_t row = q.q_offset + (first + h) * p.stride_qh;
      constexpr int64_t kPiece = 256;
      alignas(64) float piece[kPiece];
      for (int64_t k = 0; k < D; k += kPiece) {
        const int64_t n = D - k < kPiece ? D - k : kPiece;
        load_floats(p.q, p.q_dtype, row + k, n, piece);
        for (int64_t i = 0; i < n; ++i) to[(k + i) * width + h] = piece[i];
      }
    }
  });
}

// The state of the heads of a part: maxima, sums of weights, and by what a tile rescales what was summed.
struct MlaSoftmax {
  float* max;      // [heads]
  float* sum;      // [heads]
  float* rescale;  // [heads]
  int64_t heads;   // padded
};

// Scores of a tile [tokens][heads] to weights. The loops over heads are vectorized.
inline void softmax_tile(const MlaSoftmax& s, float sm_scale, int64_t tokens, float* scores) {
  alignas(64) float max[kMlaMostHeads], sum[kMlaMostHeads];
  const int64_t heads = s.heads;
  for (int64_t h = 0; h < heads; ++h) max[h] = s.max[h];
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const float score = scores[t * heads + h] * sm_scale;
      scores[t * heads + h] = score;
      max[h] = score > max[h] ? score : max[h];
    }
  for (int64_t h = 0; h < heads; ++h) {
    s.rescale[h] = exp_nonpositive(s.max[h] - max[h]);
    s.max[h] = max[h];
    sum[h] = 0.f;
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const float weight = exp_nonpositive(scores[t * heads + h] - max[h]);
      scores[t * heads + h] = weight;
      sum[h] += weight;
    }
  for (int64_t h = 0; h < heads; ++h) s.sum[h] = s.sum[h] * s.rescale[h] + sum[h];
}

void mla_attend(const MlaProblem& p, const MlaQuery& q, int64_t part, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t heads = q.padded_heads(), padded = p.padded_D(), num_panels = padded / kMlaPanel,
                panel_floats = num_panels * kMlaPanelFloats;
  float* sums = q.parts + part * moela::cpu::mla_part_floats(p, q);
  const int64_t ld = p.padded_latent();
  float* panels = scratch;
  float* panels_of_next = panels + panel_floats;
  float* scores = panels_of_next + panel_floats;
  const MlaSoftmax softmax = {.max = sums + heads * ld,
                              .sum = sums + heads * (ld + 1),
                              .rescale = scores + kMlaTokens * kMlaMostHeads,
                              .heads = heads};
  std::memset(sums, 0, heads * (ld + 2) * sizeof(float));
  if (padded != p.D()) std::memset(panels, 0, 2 * panel_floats * sizeof(float));
  for (int64_t h = 0; h < heads; ++h) softmax.max[h] = kNoScore;

  const int64_t tiles = (q.num_heads + kMlaRows - 1) / kMlaRows;
  const int64_t base = q.num_heads / tiles, larger = q.num_heads % tiles;  // rows of a tile of heads
  const ValueTile tile_of[] = {value_tile_for(base), value_tile_for(base + 1)};
  const int64_t first = part * moela::cpu::kMlaSplit;
  const int64_t end =
      first + moela::cpu::kMlaSplit < q.keys.count ? first + moela::cpu::kMlaSplit : q.keys.count;
  MlaRows rows(p.cache, q.keys, first, end);
  const int64_t rows_at_once = kMlaTokens / (tiles * (ld / kMlaCols)) + 1;
  while (const int64_t tokens = rows.take(panels)) {
    MlaPrefetcher prefetcher = rows.prefetcher();
    prefetcher.spread(tokens * heads * padded / (kMlaRows * kMlaCols * kMlaColumnsOfStep) + 1);
    for_vectors_of_heads(q.num_heads, [&](int64_t head, int64_t width) {
      const float* packed = q.packed + head * padded;
      float* to = scores + head;
      if (width == kMlaCols)
        scores_of_heads<kMlaRows, kMlaVecs>(panels, num_panels, packed, tokens, to, heads, prefetcher);
      else
        scores_of_heads<kMlaRowsOfOne, 1>(panels, num_panels, packed, tokens, to, heads, prefetcher);
    });
    softmax_tile(softmax, p.sm_scale, tokens, scores);
    prefetcher.spread(tokens * tiles * (ld / kMlaCols));
    for (int64_t column = 0; column < ld; column += kMlaCols) {
      const float* values = panels + column / kMlaPanel * kMlaPanelFloats + column % kMlaPanel;
      int64_t head = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        const bool is_larger = t < larger;
        tile_of[is_larger](scores + head, heads, values, tokens, softmax.rescale + head,
                           sums + head * ld + column, ld, prefetcher);
        head += base + is_larger;
        rows.convert(rows_at_once, panels_of_next);
      }
    }
    float* done = panels;
    panels = panels_of_next;
    panels_of_next = done;
  }
}

// Adds the parts in order and divides, by the weight of the sink too.
void mla_merge(const MlaProblem& p, const MlaQuery& q) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t heads = q.padded_heads(), ld = p.padded_latent(), L = p.cache.latent;
  const int64_t part_floats = moela::cpu::mla_part_floats(p, q), num_parts = q.num_parts();
  for (int64_t h = 0; h < q.num_heads; ++h) {
    const int64_t row = q.index * p.H + q.head + h;
    const auto max_of = [&](int64_t part) { return q.parts[part * part_floats + heads * ld + h]; };
    float max = kNoScore, total = 0.f;
    for (int64_t part = 0; part < num_parts; ++part) max = max_of(part) > max ? max_of(part) : max;
    for (int64_t part = 0; part < num_parts; ++part)
      total += q.parts[part * part_floats + heads * (ld + 1) + h] * exp_nonpositive(max_of(part) - max);
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
      for (int64_t i = 0; i < n; ++i) sum[i] = 0.f;
      for (int64_t part = 0; part < num_parts; ++part) {
        const float* from = q.parts + part * part_floats + h * ld + k;
        const float factor = exp_nonpositive(max_of(part) - max);
        for (int64_t i = 0; i < n; ++i) sum[i] += factor * from[i];
      }
      if (has_weight)
        for (int64_t i = 0; i < n; ++i) sum[i] /= total;
      store_floats(sum, n, p.q_dtype, p.out, row * L + k);
    }
  }
}

constexpr moela::cpu::MlaKernels kMlaKernels = {kMlaHeads, mla_scratch_floats, mla_pack, mla_attend,
                                                mla_merge};

}  // namespace
