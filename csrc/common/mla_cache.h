// The latent cache as its ops get it: checks in the words of python/moela/ops, and its plain form.
#pragma once

#include <string>

#include "common/slots.h"
#include "cpu/mla_cache.h"

namespace moela {

inline bool is_of_bytes(const Tensor& cache) { return cache.scalar_type() == ScalarType::Byte; }

// Elements of a row.
inline int64_t mla_row_size(int64_t latent, int64_t rope, const Tensor& cache) {
  return is_of_bytes(cache) ? latent + latent / cpu::kMlaGroup * 4 + 2 * rope : latent + rope;
}

inline void check_mla_cache_dtype(const char* op, const Tensor& cache) {
  using enum ScalarType;
  check_dtype(op, "cache", cache.scalar_type(), {BFloat16, Half, Float, Byte});
}

inline void check_mla_rows(const char* op, const Tensor& cache, int64_t latent, int64_t rope) {
  const int64_t size = mla_row_size(latent, rope, cache), got = cache.size(2);
  const std::string unit = is_of_bytes(cache) ? " bytes" : " elements";
  if (got != size) fail(op, "cache", "rows of " + std::to_string(size) + unit, got);
  check_last_dim_contiguous(op, "cache", cache);
}

// Where the T rows of `owner` go to; `latent`: the argument that L is of.
inline void check_mla_destination(const char* op, const char* latent, int64_t L, int64_t R,
                                  const Tensor& cache, const Tensor& slots, int64_t T, bool ue8m0,
                                  const char* owner) {
  check_dim(op, "cache", cache, 3);
  check_mla_cache_dtype(op, cache);
  if (is_of_bytes(cache) && L % cpu::kMlaGroup != 0)
    fail(op, latent, "L a multiple of 128 because cache is uint8", "L=" + std::to_string(L));
  check_mla_rows(op, cache, L, R);
  check_cpu(op, "cache", cache, owner);
  if (!is_of_bytes(cache) && ue8m0)
    fail(op, "ue8m0", std::string("False because cache is ") + dtype_name(cache.scalar_type()), "True");
  check_slots(op, slots, T, cache.size(0) * cache.size(1), owner);
}

inline cpu::MlaCache mla_cache_of(const Tensor& cache, int64_t latent, int64_t rope, void* data) {
  const cpu::Dtype dtype = is_of_bytes(cache) ? cpu::Dtype::kE4m3 : cpu_dtype(cache.scalar_type());
  return {
      .data = data,
      .dtype = dtype,
      .latent = latent,
      .rope = rope,
      .num_pages = cache.size(0),
      .page_size = cache.size(1),
      .page_bytes = cache.stride(0) * cpu::size_of(dtype),
      .slot_bytes = cache.stride(1) * cpu::size_of(dtype),
  };
}

}  // namespace moela
