// The translation unit of ep_dispatch for nvcc. tests/emu/ep_dispatch.cpp is the one for the host.
#include "cuda/ep_dispatch/ep_dispatch_sm90.cuh"
