// The one header that kernels include. The same names have two bodies: PTX for sm_90a (ptx/, the only asm and
// device intrinsics of the project, one function = one instruction), and an emulation for the host (csrc/emu)
// that checks results, races and deadlocks. MOELA_EMULATE picks the second.
#pragma once

#include "cuda/hopper/shape.h"
#include "cuda/hopper/tensor_spec.h"
#include "cuda/hopper/types.h"

#ifdef MOELA_EMULATE
#include "emu/hopper_emu.h"
#else
#include "cuda/hopper/ptx/barrier.h"
#include "cuda/hopper/ptx/bulk.h"
#include "cuda/hopper/ptx/cache.h"
#include "cuda/hopper/ptx/convert.h"
#include "cuda/hopper/ptx/global.h"
#include "cuda/hopper/ptx/ids.h"
#include "cuda/hopper/ptx/matrix.h"
#include "cuda/hopper/ptx/mbarrier.h"
#include "cuda/hopper/ptx/reduce.h"
#include "cuda/hopper/ptx/shared.h"
#include "cuda/hopper/ptx/tensor_map.h"
#include "cuda/hopper/ptx/time.h"
#include "cuda/hopper/ptx/tma.h"
#include "cuda/hopper/ptx/warp.h"
#include "cuda/hopper/ptx/wgmma.h"
#endif

#include "cuda/hopper/descriptor.h"
#include "cuda/hopper/waits.h"
