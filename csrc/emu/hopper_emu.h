// The emulated half of cuda/hopper/hopper.h: the names of ptx/, checked and run on the host. Every function
// that can be wrong takes the place of its call, for the report.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/hopper_cache.h"
#include "emu/hopper_copy.h"
#include "emu/hopper_memory.h"
#include "emu/hopper_mma.h"
#include "emu/hopper_reduce.h"
#include "emu/hopper_sync.h"
#include "emu/hopper_tensor_map.h"
#include "emu/hopper_warp.h"
