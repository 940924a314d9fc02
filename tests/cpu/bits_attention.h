// The kernels of attention, for bits.cpp.
#pragma once

#include <algorithm>

#include "bits.h"

namespace {

void states(const Kernels& kernels, Dtype dtype) {
  constexpr int64_t kM = 40, kD = 333;
  const std::vector<uint8_t> a = elements(dtype, kM * kD, 13), b = elements(dtype, kM * kD, 14);
  std::vector<float> lse_a = floats(kM, 15), lse_b = floats(kM, 16), lse(kM);
  lse_a[3] = lse_b[3] = lse_b[5] = -__builtin_inff();
  std::vector<uint8_t> out(a.size());
  kernels.merge_states({.out_a = a.data(),
                        .out_b = b.data(),
                        .dtype = dtype,
                        .ld_a = kD,
                        .ld_b = kD,
                        .lse_a = lse_a.data(),
                        .lse_b = lse_b.data(),
                        .stride_a = 1,
                        .stride_b = 1,
                        .out = out.data(),
                        .lse = lse.data(),
                        .D = kD},
                       0, kM);
  print(kernels, "merge_states-out-" + std::to_string(static_cast<int>(dtype)), out);
  print(kernels, "merge_states-lse-" + std::to_string(static_cast<int>(dtype)), lse);
}

void cache_writes(const Kernels& kernels, Dtype dtype, Dtype cache_dtype, bool is_split) {
  constexpr int64_t kT = 9, kL = 384, kR = 70;
  const int64_t row_bytes =
      cache_dtype == Dtype::kE4m3 ? kL + kL / 128 * 4 + 2 * kR : (kL + kR) * element_size(cache_dtype);
  const std::vector<uint8_t> kv = elements(dtype, kT * (kL + kR), 17), weight = elements(dtype, kL, 18);
  const std::vector<float> cos = floats(kT * kR / 2, 19), sin = floats(kT * kR / 2, 20);
  std::vector<int64_t> slots(kT);
  for (int64_t t = 0; t < kT; ++t) slots[t] = kT - 1 - t;
  std::vector<uint8_t> written(kT * row_bytes), normalized(kT * row_bytes);
  moela::cpu::MlaCache cache = {.data = written.data(),
                                .dtype = cache_dtype,
                                .latent = kL,
                                .rope = kR,
                                .num_pages = kT,
                                .page_size = 1,
                                .page_bytes = row_bytes,
                                .slot_bytes = row_bytes};
  kernels.mla_cache_write({.kv_c = kv.data(),
                           .k_pe = kv.data() + kL * element_size(dtype),
                           .dtype = dtype,
                           .ld_c = kL + kR,
                           .ld_r = kL + kR,
                           .cache = cache,
                           .slots = {.data = slots.data(), .are_64 = true},
                           .ue8m0 = is_split && cache_dtype == Dtype::kE4m3},
                          0, kT);
  cache.data = normalized.data();
  kernels.mla_norm_rope_cache_write({.kv = kv.data(),
                                     .dtype = dtype,
                                     .ld = kL + kR,
                                     .weight = weight.data(),
                                     .weight_dtype = dtype,
                                     .cos = cos.data(),
                                     .sin = sin.data(),
                                     .angle_dtype = Dtype::kFloat32,
                                     .ld_cos = kR / 2,
                                     .ld_sin = kR / 2,
                                     .cache = cache,
                                     .slots = {.data = slots.data(), .are_64 = true},
                                     .eps = 1e-6f,
                                     .interleaved = !is_split,
                                     .ue8m0 = false},
                                    0, kT);
  const std::string name = std::to_string(static_cast<int>(dtype)) + "-" +
                           std::to_string(static_cast<int>(cache_dtype)) + (is_split ? "-split" : "");
  print(kernels, "mla_cache_write-" + name, written);
  print(kernels, "mla_norm_rope_cache_write-" + name, normalized);
}

void indexer(const Kernels& kernels, int64_t H, int64_t D) {
  constexpr int64_t kKeys = moela::cpu::kIndexerKeys - 3, kTopk = 7;
  std::vector<uint8_t> q = elements(Dtype::kE4m3, H * D, 17), k = elements(Dtype::kE4m3, kKeys * D, 18);
  for (std::vector<uint8_t>* codes : {&q, &k})
    for (uint8_t& code : *codes) code ^= (code & 0x7F) == 0x7F;  // no NaN: its bits are the machine's
  const std::vector<float> weights = floats(H, 19), sf = floats(kKeys, 20);
  const moela::cpu::IndexerShape shape = {.H = H, .D = D, .stride_qh = D};
  std::vector<float> logits(kKeys), packed(moela::cpu::indexer_packed_floats(shape));
  std::vector<float> scratch(moela::cpu::indexer_scratch_floats(shape));
  const moela::cpu::IndexerQuery query = {.q = q.data(),
                                          .weights = weights.data(),
                                          .begin = 2,
                                          .end = kKeys,
                                          .logits = logits.data(),
                                          .packed = packed.data()};
  moela::cpu::IndexerTile tile;
  tile.first = 0, tile.count = kKeys;
  for (int64_t i = 0; i < kKeys; ++i) {
    tile.codes[i] = k.data() + i * D;
    tile.sf[i] = reinterpret_cast<const uint8_t*>(sf.data() + i);
  }
  kernels.indexer_logits.pack(shape, query);
  kernels.indexer_logits.score(shape, tile, &query, 1, scratch.data());
  std::vector<int32_t> indices(kTopk);
  std::vector<uint32_t> room(moela::cpu::indexer_topk_scratch(kKeys));
  logits[40] = __builtin_nanf("");
  kernels.indexer_topk({.logits = logits.data(),
                        .ld = kKeys,
                        .S = kKeys,
                        .topk = kTopk,
                        .ks = nullptr,
                        .ke = nullptr,
                        .block_table = nullptr,
                        .stride_tb = 0,
                        .page_size = 1,
                        .request_ids = nullptr,
                        .rows_of_request = 1,
                        .indices = indices.data()},
                       0, 1, room.data());
  logits[40] = 0.f;
  print(kernels, "indexer_logits-" + std::to_string(H), logits);
  print(kernels, "indexer_topk-" + std::to_string(H), indices);
}

void prefill(const Kernels& kernels, Dtype dtype, bool causal) {
  constexpr int64_t kQueries = 130, kKeys = 120, kH = 1, kD = 37, kDv = 21;
  const std::vector<uint8_t> q = elements(dtype, kQueries * kD, 17), k = elements(dtype, kKeys * kD, 18),
                             v = elements(dtype, kKeys * kDv, 19), dout = elements(dtype, kQueries * kDv, 20);
  std::vector<uint8_t> out(dout.size()), dq(q.size()), dk(k.size()), dv(v.size());
  std::vector<float> lse(kQueries);
  const moela::cpu::PrefillProblem problem = {.q = {q.data(), kD, kD},
                                              .k = {k.data(), kD, kD},
                                              .v = {v.data(), kDv, kDv},
                                              .dtype = dtype,
                                              .H = kH,
                                              .D = kD,
                                              .Dv = kDv,
                                              .sm_scale = 0.3f,
                                              .causal = causal};
  const moela::cpu::PrefillSequence sequence = {
      .query = 0, .num_queries = kQueries, .key = 0, .num_keys = kKeys};
  std::vector<float> scratch(kernels.mla_prefill_backward.scratch_floats(problem, kQueries, kKeys),
                             __builtin_nanf(""));
  for (int64_t first = 0; first < kQueries; first += moela::cpu::kPrefillTile)
    kernels.mla_prefill.run({.problem = problem, .out = out.data(), .lse = lse.data()},
                            {.sequence = sequence,
                             .head = 0,
                             .first = first,
                             .count = std::min(kQueries - first, moela::cpu::kPrefillTile)},
                            scratch.data());
  kernels.mla_prefill_backward.run({.problem = problem,
                                    .dout = {dout.data(), kDv, kDv},
                                    .fwd_out = {out.data(), kDv, kDv},
                                    .lse = {lse.data(), 1, 0},
                                    .dlse = {},
                                    .dq = dq.data(),
                                    .dk = dk.data(),
                                    .dv = dv.data()},
                                   sequence, 0, scratch.data());
  const std::string name = std::to_string(static_cast<int>(dtype)) + (causal ? "-causal" : "");
  print(kernels, "mla_prefill-out-" + name, out);
  print(kernels, "mla_prefill-lse-" + name, lse);
  print(kernels, "mla_prefill_backward-dq-" + name, dq);
  print(kernels, "mla_prefill_backward-dk-" + name, dk);
  print(kernels, "mla_prefill_backward-dv-" + name, dv);
}

}  // namespace
