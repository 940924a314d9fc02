// Torch side of the CPU mla_cache_write: check, launch.
#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_cache_write";

void check_slots(const Tensor& slots, int64_t T, int64_t num_slots) {
  const char* arg = "slot_mapping";
  check_dtype(kOp, arg, slots.scalar_type(), {ScalarType::Int, ScalarType::Long});
  check_shape(kOp, arg, slots, {T});
  check_last_dim_contiguous(kOp, arg, slots);
  check_cpu(kOp, arg, slots, "kv_c");
  for (int64_t t = 0; t < T; ++t) {
    const int64_t slot = slots.scalar_type() == ScalarType::Long
                             ? static_cast<const int64_t*>(slots.const_data_ptr())[t]
                             : static_cast<const int32_t*>(slots.const_data_ptr())[t];
    if (slot < -1 || slot >= num_slots)
      fail(kOp, arg, "slots within [-1, " + std::to_string(num_slots - 1) + "]",
           std::to_string(slot) + " at token " + std::to_string(t));
  }
}

void check(const Tensor& kv_c, const Tensor& k_pe, const Tensor& cache, const Tensor& slots, bool ue8m0) {
  using enum ScalarType;
  check_dim(kOp, "kv_c", kv_c, 2);
  check_dtype(kOp, "kv_c", kv_c.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "kv_c", kv_c);
  const int64_t T = kv_c.size(0), L = kv_c.size(1);
  check_dim(kOp, "k_pe", k_pe, 2);
  check_same_dtype(kOp, "k_pe", k_pe.scalar_type(), kv_c.scalar_type(), "kv_c");
  check_same(kOp, "k_pe", "T", k_pe.size(0), T, "kv_c");
  check_last_dim_contiguous(kOp, "k_pe", k_pe);
  check_cpu(kOp, "k_pe", k_pe, "kv_c");
  check_dim(kOp, "cache", cache, 3);
  check_mla_cache_dtype(kOp, cache);
  if (is_of_bytes(cache) && L % cpu::kMlaGroup != 0)
    fail(kOp, "kv_c", "a multiple of 128 columns because cache is uint8", L);
  check_mla_rows(kOp, cache, L, k_pe.size(1));
  check_cpu(kOp, "cache", cache, "kv_c");
  if (!is_of_bytes(cache) && ue8m0)
    fail(kOp, "ue8m0", std::string("False because cache is ") + dtype_name(cache.scalar_type()), "True");
  check_slots(slots, T, cache.size(0) * cache.size(1));
}

void mla_cache_write(const Tensor& kv_c, const Tensor& k_pe, Tensor cache, const Tensor& slots, bool ue8m0) {
  check(kv_c, k_pe, cache, slots, ue8m0);
  const cpu::MlaCacheWriteParams p = {
      .kv_c = kv_c.const_data_ptr(),
      .k_pe = k_pe.const_data_ptr(),
      .dtype = cpu_dtype(kv_c.scalar_type()),
      .ld_c = kv_c.stride(0),
      .ld_r = k_pe.stride(0),
      .cache = mla_cache_of(cache, kv_c.size(1), k_pe.size(1), cache.mutable_data_ptr()),
      .slots = slots.const_data_ptr(),
      .slots_are_64 = slots.scalar_type() == ScalarType::Long,
      .ue8m0 = ue8m0,
  };
  parallel(kv_c.size(0), 0.3 * static_cast<double>(kv_c.size(1) + k_pe.size(1)),
           [&](int64_t begin, int64_t end) { cpu::kernels().mla_cache_write(p, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) { m.impl("mla_cache_write", TORCH_BOX(&mla_cache_write)); }

}  // namespace moela
