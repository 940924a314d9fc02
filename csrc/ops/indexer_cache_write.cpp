// Torch side of the CPU indexer_cache_write: check, launch.
#include "common/indexer.h"
#include "common/slots.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "indexer_cache_write";

void indexer_cache_write(const Tensor& k, Tensor cache, const Tensor& slots, bool ue8m0) {
  using enum ScalarType;
  check_dim(kOp, "k", k, 2);
  check_dtype(kOp, "k", k.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "k", k);
  check_indexer_cache(kOp, cache, k.size(1), "k");
  check_slots(kOp, slots, k.size(0), cache.size(0) * cache.size(1), "k");
  const cpu::IndexerCacheWriteParams p = {
      .k = k.const_data_ptr(),
      .dtype = cpu_dtype(k.scalar_type()),
      .ld = k.stride(0),
      .cache = indexer_cache_of(cache, cache.mutable_data_ptr()),
      .slots = slots_of(slots),
      .ue8m0 = ue8m0,
  };
  parallel(k.size(0), 0.3 * static_cast<double>(k.size(1)),
           [&](int64_t begin, int64_t end) { cpu::kernels().indexer_cache_write(p, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) { m.impl("indexer_cache_write", TORCH_BOX(&indexer_cache_write)); }

}  // namespace moela
