// mla_decode on the CPU: some heads of a query over some keys. Bound: the float32 multiply-add rate.
//
// A tile of keys is converted to float32 once for all heads, into panels that stay in L2. Scores, softmax and
// weighted values of the tile follow; sums are scaled again where the maximum has grown.
//
// Numerics of one head: scores are chains of fused multiply-adds over 192 columns, ascending, whose sums are
// added in order and multiplied by sm_scale. Weights are e^(score - maximum so far); their sum and the chains
// of weighted values ascend over the keys of a tile of 96. Tiles and parts begin at fixed keys, so bits
// depend on nothing else.
#pragma once

#include "cpu/exp_log.h"
#include "cpu/mla_decode.h"
#include "cpu/mla_tile.h"

namespace {

using moela::cpu::MlaDecodeProblem;
using moela::cpu::MlaQuery;

// Less than every score, and finite: its difference to itself is 0.
constexpr float kNoScore = -0x1.fffffep127f;

// Vectors of heads that are multiplied together begin at this head; each has [column][its heads] in `packed`.
template <class Visit>
MOELA_INLINE void for_vectors_of_heads(int64_t num_heads, const Visit& visit) {
  int64_t head = 0;
  for (; head + kMlaCols - kLanes < num_heads; head += kMlaCols) visit(head, kMlaCols);
  for (; head < num_heads; head += kLanes) visit(head, kLanes);
}

void mla_pack(const MlaDecodeProblem& p, const MlaQuery& q) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t D = p.D(), padded = p.padded_D();
  std::memset(q.packed, 0, moela::cpu::mla_packed_floats(p, q) * sizeof(float));
  for_vectors_of_heads(q.num_heads, [&](int64_t first, int64_t width) {
    float* to = q.packed + first * padded;
    const int64_t count = q.num_heads - first < width ? q.num_heads - first : width;
    for (int64_t h = 0; h < count; ++h) {
      const int64_t row =
          q.request * p.stride_qb + q.query * p.stride_qj + (q.head + first + h) * p.stride_qh;
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

// Rows of keys [begin, begin + count) of a request; columns beyond D stay as they are.
inline void fill_panels(const MlaDecodeProblem& p, int64_t request, int64_t begin, int64_t count,
                        float* panels) {
  const moela::cpu::MlaCache& c = p.cache;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t key = begin + t;
    const int64_t page =
        p.block_table == nullptr ? request : p.block_table[request * p.stride_tb + key / c.page_size];
    const uint8_t* row =
        static_cast<const uint8_t*>(c.data) + page * c.page_bytes + key % c.page_size * c.slot_bytes;
    float* to = panels + t * kMlaPanel;
    switch (c.dtype) {
      case Dtype::kBFloat16: fill_row<uint16_t>(row, p.D(), to, from_bfloat16); break;
      case Dtype::kFloat16: fill_row<uint16_t>(row, p.D(), to, from_float16); break;
      case Dtype::kFloat32: fill_row<float>(row, p.D(), to, [](float x) { return x; }); break;
      default: fill_bytes(row, c, to);
    }
  }
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
  alignas(64) float max[moela::cpu::kMlaHeads], sum[moela::cpu::kMlaHeads];
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

void mla_attend(const MlaDecodeProblem& p, const MlaQuery& q, int64_t part, float* scratch) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t heads = q.padded_heads(), padded = p.padded_D(), num_panels = padded / kMlaPanel,
                panel_floats = num_panels * kMlaPanelFloats;
  float* sums = q.parts + part * moela::cpu::mla_part_floats(p, q);
  const int64_t ld = p.padded_latent();
  float* panels = scratch;
  float* scores = panels + panel_floats;
  const MlaSoftmax softmax = {.max = sums + heads * ld,
                              .sum = sums + heads * (ld + 1),
                              .rescale = scores + kMlaTokens * moela::cpu::kMlaHeads,
                              .heads = heads};
  std::memset(sums, 0, heads * (ld + 2) * sizeof(float));
  if (padded != p.D()) std::memset(panels, 0, panel_floats * sizeof(float));
  for (int64_t h = 0; h < heads; ++h) softmax.max[h] = kNoScore;

  const int64_t tiles = (q.num_heads + kMlaRows - 1) / kMlaRows;
  const int64_t base = q.num_heads / tiles, larger = q.num_heads % tiles;  // rows of a tile of heads
  const ValueTile tile_of[] = {value_tile_for(base), value_tile_for(base + 1)};
  const int64_t first = part * moela::cpu::kMlaSplit;
  const int64_t end = first + moela::cpu::kMlaSplit < q.num_keys ? first + moela::cpu::kMlaSplit : q.num_keys;
  for (int64_t key = first; key < end; key += kMlaTokens) {
    const int64_t tokens = end - key < kMlaTokens ? end - key : kMlaTokens;
    fill_panels(p, q.request, key, tokens, panels);
    for_vectors_of_heads(q.num_heads, [&](int64_t head, int64_t width) {
      const float* packed = q.packed + head * padded;
      if (width == kMlaCols)
        scores_of_heads<kMlaRows, kMlaVecs>(panels, num_panels, packed, tokens, scores + head, heads);
      else
        scores_of_heads<kMlaRowsOfOne, 1>(panels, num_panels, packed, tokens, scores + head, heads);
    });
    softmax_tile(softmax, p.sm_scale, tokens, scores);
    for (int64_t column = 0; column < ld; column += kMlaCols) {
      const float* values = panels + column / kMlaPanel * kMlaPanelFloats + column % kMlaPanel;
      int64_t head = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        const bool is_larger = t < larger;
        tile_of[is_larger](scores + head, heads, values, tokens, softmax.rescale + head,
                           sums + head * ld + column, ld);
        head += base + is_larger;
      }
    }
  }
}

// Adds the parts in order and divides.
void mla_merge(const MlaDecodeProblem& p, const MlaQuery& q) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t heads = q.padded_heads(), ld = p.padded_latent(), L = p.cache.latent;
  const int64_t part_floats = moela::cpu::mla_part_floats(p, q), num_parts = q.num_parts();
  for (int64_t h = 0; h < q.num_heads; ++h) {
    const int64_t row = (q.request * p.s_q + q.query) * p.H + q.head + h;
    const auto max_of = [&](int64_t part) { return q.parts[part * part_floats + heads * ld + h]; };
    float max = kNoScore, total = 0.f;
    for (int64_t part = 0; part < num_parts; ++part) max = max_of(part) > max ? max_of(part) : max;
    for (int64_t part = 0; part < num_parts; ++part)
      total += q.parts[part * part_floats + heads * (ld + 1) + h] * exp_nonpositive(max_of(part) - max);
    p.lse[row] = num_parts == 0 ? -__builtin_inff() : max + log_of(total);
    constexpr int64_t kPiece = 512;
    alignas(64) float sum[kPiece];
    for (int64_t k = 0; k < L; k += kMlaPanel) {
      const int64_t n = L - k < kPiece ? L - k : kPiece;
      for (int64_t i = 0; i < n; ++i) sum[i] = 0.f;
      for (int64_t part = 0; part < num_parts; ++part) {
        const float* from = q.parts + part * part_floats + h * ld + k;
        const float factor = exp_nonpositive(max_of(part) - max);
        for (int64_t i = 0; i < n; ++i) sum[i] += factor * from[i];
      }
      if (num_parts > 0)
        for (int64_t i = 0; i < n; ++i) sum[i] /= total;
      store_floats(sum, n, p.q_dtype, p.out, row * L + k);
    }
  }
}

constexpr moela::cpu::MlaDecodeKernels kMlaDecodeKernels = {mla_pack, mla_attend, mla_merge};

}  // namespace
