// The translation unit of mla_sparse for nvcc. tests/emu/mla_sparse.cpp is the one for the host.
#include "cuda/mla_sparse/mla_sparse_launch.h"
