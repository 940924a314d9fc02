// The translation unit of ep_combine for nvcc. tests/emu/ep_combine.cpp is the one for the host.
#include "cuda/ep_combine/ep_combine_sm90.cuh"
