// Torch side of the CPU mla_cache_write: check, launch.
#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_cache_write";

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
  check_mla_destination(kOp, "kv_c", L, k_pe.size(1), cache, slots, T, ue8m0, "kv_c");
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
      .slots = slots_of(slots),
      .ue8m0 = ue8m0,
  };
  parallel(kv_c.size(0), 0.3 * static_cast<double>(kv_c.size(1) + k_pe.size(1)),
           [&](int64_t begin, int64_t end) { cpu::kernels().mla_cache_write(p, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) { m.impl("mla_cache_write", TORCH_BOX(&mla_cache_write)); }

}  // namespace moela
