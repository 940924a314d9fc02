// The translation unit of mla_decode for nvcc. tests/emu/mla_decode.cpp is the one for the host.
#include "cuda/mla_decode/mla_decode_launch.h"
