"""What the Triton kernels share: what a target can do, and casts with the definition's bits on every target.

Casts are written in integer arithmetic where the hardware or the interpreter has no right one: sm_80 and
sm_86 have no fp8 type, and Triton's interpreter truncates float32 -> bfloat16, multiplies bfloat16 wrongly
and gets fp8 casts wrong (docs/FACTS.md).
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from moela.backends import interpreted


@dataclass(frozen=True)
class Target:
    """What a device can do. `fp8`: e4m3fn in casts and dots. `tma`: tensor descriptors."""

    fp8: bool
    tma: bool
    multiprocessors: int
    interpreted: bool = False
    lanes: int = 32  # threads of a warp


INTERPRETER = Target(fp8=False, tma=False, multiprocessors=1, interpreted=True)


def cuda_target(capability: int, multiprocessors: int) -> Target:
    """sm_<capability>."""
    return Target(fp8=capability >= 89, tma=capability >= 90, multiprocessors=multiprocessors)


def hip_target(arch: str, multiprocessors: int) -> Target:
    """gfx<arch>. gfx942 has e4m3fnuz, another number format, so its e4m3fn is decoded in registers."""
    return Target(fp8=arch.startswith("gfx95"), tma=False, multiprocessors=multiprocessors, lanes=64)


def target_of(device: torch.device) -> Target:
    return INTERPRETER if interpreted() else _device_target(device.index or 0)


@cache
def _device_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return hip_target(properties.gcnArchName, properties.multi_processor_count)
    return cuda_target(10 * properties.major + properties.minor, properties.multi_processor_count)


@triton.jit
def decode_e4m3(codes, DTYPE: tl.constexpr):
    """uint8 e4m3 codes -> DTYPE, exact; NaN codes give NaN.

    Sign and magnitude bits moved into a float16 are the value * 2^-8, for subnormal codes too. bfloat16 and
    float16 hold every e4m3 value.
    """
    wide = codes.to(tl.uint16)
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    value = half.to(tl.float32) * 256.0
    value = tl.where((wide & 0x7F) == 0x7F, float("nan"), value)
    return value.to(DTYPE)


@triton.jit
def decode_e8m0(codes):
    """uint8 e8m0 codes -> float32 2^(code - 127); 255 gives NaN, 0 the subnormal 2^-127."""
    wide = codes.to(tl.uint32)
    bits = tl.where(wide == 0, 0x00400000, tl.where(wide == 255, 0x7FC00000, wide << 23))
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def load_sf(ptrs, IS_E8M0: tl.constexpr):
    """Scale factors as float32."""
    sf = tl.load(ptrs)
    if IS_E8M0:
        return decode_e8m0(sf)
    return sf.to(tl.float32)


@triton.jit
def encode_e4m3(x, NATIVE: tl.constexpr):
    """float32 -> uint8 e4m3 codes, nearest even, clamped to +-448; NaN gives 0x7F."""
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    is_nan = magnitude > 0x7F800000
    if NATIVE:
        # The clamp comes first: what a cast does beyond 448 differs between targets. min and max drop a NaN.
        clamped = tl.minimum(tl.maximum(x, -448.0), 448.0)
        codes = clamped.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
        return tl.where(is_nan, 0x7F, codes).to(tl.uint8)
    # From 2^-6 on: round to 3 fraction bits and rebias by 120. Below, the grid is 2^-9: adding 2^14 puts it
    # at the end of the fraction of a float32.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    shifted = magnitude.to(tl.float32, bitcast=True) + 16384.0
    subnormal = shifted.to(tl.uint32, bitcast=True) - 0x46800000  # the bits of 2^14
    codes = tl.where(magnitude < 0x3C800000, subnormal, normal)
    codes = tl.where(magnitude > 0x43E00000, 0x7E, codes) | ((bits >> 24) & 0x80)
    return tl.where(is_nan, 0x7F, codes).to(tl.uint8)


@triton.jit
def to_float32(x, INTERPRETED: tl.constexpr):
    """A float type -> float32, exact. The interpreter gets subnormal bfloat16 wrong."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def round_to(x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 -> DTYPE, nearest even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def magnitude_bits(x):
    """Bits of |x| as int32. As integers NaN > Inf > every finite number, so a maximum keeps NaN."""
    return (x.to(tl.uint32, bitcast=True) & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def scale_factor(amax_bits, UE8M0: tl.constexpr):
    """max(amax / 448, 2^-126) from the bits of amax; with UE8M0 rounded up to a power of two."""
    exact = tl.div_rn(amax_bits.to(tl.float32, bitcast=True), 448.0)
    sf = tl.where(exact < 1.1754943508222875e-38, 1.1754943508222875e-38, exact)  # false for NaN, which stays
    if UE8M0:
        bits = sf.to(tl.uint32, bitcast=True)
        up = (bits + 0x7FFFFF) & 0x7F800000
        sf = tl.where(bits >= 0x7F800000, bits, up).to(tl.uint32).to(tl.float32, bitcast=True)
    return sf


def sf_argument(sf: torch.Tensor) -> torch.Tensor:
    """A scale factor tensor as Triton takes it: e8m0 as bytes."""
    return sf.view(torch.uint8) if sf.dtype == torch.float8_e8m0fnu else sf


def codes_argument(q: torch.Tensor) -> torch.Tensor:
    """An e4m3 tensor as bytes."""
    return q.view(torch.uint8)
