// Launching a kernel and describing tensors to TMA: for the host side of kernels. One body calls the CUDA
// runtime, the other runs the emulator.
#pragma once

#include "cuda/hopper/shape.h"
#include "cuda/hopper/tensor_spec.h"

#ifdef MOELA_EMULATE
#include "emu/launch_emu.h"
#else
#include "cuda/hopper/launch_cuda.h"
#endif
