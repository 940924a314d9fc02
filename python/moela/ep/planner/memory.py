"""Bytes of the buffers that a rank keeps for an exchange, by layout; of DeepEP's to compare.

What arrives is not known ahead, so a buffer that never drops a row has the size of the worst case, in which
all R ranks send all their tokens to one: it grows with R, while what arrives on average does not. A capacity
factor c makes a buffer of c times the average instead. Dispatch receives rows of b bytes:

==============  ==========================  ========================  ===========================
layout          a row is                    worst case                with capacity c
==============  ==========================  ========================  ===========================
compact         a token, once a rank        R T                       c T kappa_r
expert-sorted   a token, once an expert     R T min(K, E_l)           c T K
masked          place in a fixed block of   E_l R T                   E_l ceil(c T K R / E)
                an expert
==============  ==========================  ========================  ===========================

with E_l = ceil(E / R) experts on a rank. Combine receives bfloat16 rows back: of a token at most min(K, R),
as each rank adds up its own first.
"""

import math

from moela.ep.planner.model import Sizes, Traffic

LAYOUTS = ("compact", "expert-sorted", "masked")
GIB = 2**30
_V2_ALIGN = 32  # kNumTMAAlignBytes
_V2_CHANNELS = 1024  # kNumMaxChannels


def dispatch_rows(layout: str, sizes: Sizes, kappa_r: float, capacity: float | None) -> int:
    """Rows that the buffer of a dispatch holds; capacity None is the worst case, which is never exceeded."""
    E, K, R, T = sizes.E, sizes.K, sizes.R, sizes.T
    local = -(-E // R)
    worst = {"compact": R * T, "expert-sorted": R * T * min(K, local), "masked": local * R * T}[layout]
    if capacity is None:
        return worst
    average = {"compact": T * kappa_r, "expert-sorted": T * K, "masked": T * K * R / E}[layout]
    return min(worst, math.ceil(capacity * average) * (local if layout == "masked" else 1))


def buffer_bytes(layout: str, sizes: Sizes, kappa_r: float, capacity: float | None) -> int:
    """Of a rank, dispatch and combine together."""
    dispatch = dispatch_rows(layout, sizes, kappa_r, capacity) * sizes.row_bytes
    return dispatch + min(sizes.K, sizes.R) * sizes.T * sizes.sum_bytes


def capacity_needed(layout: str, traffic: Traffic) -> float:
    """The capacity factor that loses rows in one batch of a hundred."""
    return {
        "compact": traffic.phi_r_99,
        "expert-sorted": traffic.phi_k_99,
        "masked": traffic.phi_e_99,
    }[layout]


def deepep_v1_low_latency(sizes: Sizes) -> int:
    """DeepEP V1's low-latency buffer, two of each kind: 2 (send + receive + counts).

    There are E T messages to send and to receive; the largest is one of combine, of 2 hidden bytes and 4 for
    each 128 columns. Source: DeepEP dd758ca, csrc/legacy/config.hpp, LowLatencyLayout.
    """
    E, T, hidden = sizes.E, sizes.T, sizes.hidden
    scales = 4 * (hidden // 128)
    dispatch = 16 + max(2 * hidden, hidden + scales)
    combine = scales + 2 * hidden
    send = max(T * dispatch, E * T * combine)
    receive = E * T * max(dispatch, combine)
    return 2 * (send + receive + -(-4 * E // 128) * 128)


def deepep_v2_dispatch(sizes: Sizes) -> int:
    """DeepEP V2's buffer of a dispatch: R T b on one node, else G N T b + T b + N (T + 1024) b.

    Source: DeepEP dd758ca, csrc/elastic/buffer.hpp, get_dispatch_buffer_size; a row's b with a scale factor
    for each 32 columns from calculate_buffer_size, its metadata from common/layout.cuh.
    """
    N, R, T, hidden = sizes.N, sizes.R, sizes.T, sizes.hidden
    codes = _aligned(hidden) + _aligned(4 * -(-hidden // 32))
    b = codes if sizes.payload == "fp8" else _aligned(2 * hidden)
    b += _aligned(8 * sizes.K + 4 * (1 + sizes.K))
    return b * (R * T if N == 1 else R * T + T + N * (T + _V2_CHANNELS))


def deepep_v2(sizes: Sizes) -> int:
    """DeepEP V2's whole buffer: the larger of that of a dispatch and that of a combine.

    Source: as above, get_combine_buffer_size, with partial sums (allow_multiple_reduction).
    """
    N, G, K, T = sizes.N, sizes.G, sizes.K, sizes.T
    rows = min(G, K) * N * T
    if N > 1:
        rows += min(N, K) * T + N * (T + _V2_CHANNELS)
    return max(deepep_v2_dispatch(sizes), rows * (_aligned(2 * sizes.hidden) + _aligned(8 * K)))


def _aligned(size: int) -> int:
    return -(-size // _V2_ALIGN) * _V2_ALIGN
