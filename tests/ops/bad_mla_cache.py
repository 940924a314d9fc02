"""What the ops that write the latent cache refuse."""

from collections.abc import Callable

import torch
from bad_call import E4M3, FLOATS, LAST_DIM, Args, Bad, as_dtype, col_major, one_wider, put
from bad_mla import of_bytes

GOOD: dict[str, Args] = {
    "mla_cache_write": {"T": 3, "L": 128, "R": 8, "page_size": 5, "hostile": False},
    "mla_norm_rope_cache_write": {"T": 3, "L": 128, "R": 8, "page_size": 5, "hostile": False},
}


def slots(*values: int) -> Callable[[Args], Args]:
    return put(slot_mapping=lambda t: torch.tensor(values, device=t.device))


BAD: dict[str, list[Bad]] = {
    "mla_cache_write": [
        Bad("kv_c is 3-D", put(kv_c=lambda t: t[None]), "kv_c: expected a 2-D tensor, got 3-D"),
        Bad("kv_c is e4m3", put(kv_c=as_dtype(E4M3)), f"kv_c: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of kv_c are strided", put(kv_c=col_major), "kv_c: " + LAST_DIM.format(3)),
        Bad("k_pe is 1-D", put(k_pe=lambda t: t[0]), "k_pe: expected a 2-D tensor, got 1-D"),
        Bad(
            "k_pe is float32",
            put(k_pe=as_dtype(torch.float32)),
            "k_pe: expected bfloat16 (that of kv_c), got float32",
        ),
        Bad("k_pe is short", put(k_pe=lambda t: t[:2]), "k_pe: expected T=3 (that of kv_c), got T=2"),
        Bad("columns of k_pe are strided", put(k_pe=col_major), "k_pe: " + LAST_DIM.format(3)),
        Bad("cache is flat", put(cache=lambda t: t.flatten(0, 1)), "cache: expected a 3-D tensor, got 2-D"),
        Bad(
            "cache is e4m3",
            put(cache=as_dtype(E4M3)),
            "cache: expected bfloat16, float16, float32 or uint8, got float8_e4m3fn",
        ),
        Bad("cache is wide", put(cache=one_wider), "cache: expected rows of 136 elements, got 137"),
        Bad("cache has rows of 656 bytes", of_bytes(656), "cache: expected rows of 148 bytes, got 656"),
        Bad(
            "kv_c has half a group",
            of_bytes(148, kv_c=lambda t: t[:, :64]),
            "kv_c: expected L a multiple of 128 because cache is uint8, got L=64",
        ),
        Bad("columns of cache are strided", put(cache=col_major), "cache: " + LAST_DIM.format(5)),
        Bad(
            "ue8m0 of a cache of floats",
            put(ue8m0=True),
            "ue8m0: expected False because cache is bfloat16, got True",
        ),
        Bad(
            "slots are float32",
            put(slot_mapping=as_dtype(torch.float32)),
            "slot_mapping: expected int32 or int64, got float32",
        ),
        Bad("a slot is missing", slots(0, 1), "slot_mapping: expected shape [3], got [2]"),
        Bad(
            "slots are strided",
            put(slot_mapping=lambda t: t.repeat_interleave(2)[::2]),
            "slot_mapping: " + LAST_DIM.format(2),
        ),
        Bad(
            "a slot is -2", slots(0, -2, 1), "slot_mapping: expected slots within [-1, 9], got -2 at token 1"
        ),
        Bad(
            "a slot is too large",
            slots(0, 1, 10),
            "slot_mapping: expected slots within [-1, 9], got 10 at token 2",
        ),
    ],
    "mla_norm_rope_cache_write": [
        Bad("kv is 1-D", put(kv=lambda t: t[0]), "kv: expected a 2-D tensor, got 1-D"),
        Bad("kv is e4m3", put(kv=as_dtype(E4M3)), f"kv: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of kv are strided", put(kv=col_major), "kv: " + LAST_DIM.format(3)),
        Bad("weight is 2-D", put(weight=lambda t: t[None]), "weight: expected a 1-D tensor, got 2-D"),
        Bad(
            "weight is float64",
            put(weight=as_dtype(torch.float64)),
            f"weight: expected {FLOATS}, got float64",
        ),
        Bad("weight is empty", put(weight=lambda t: t[:0]), "weight: expected L within [1, 136], got L=0"),
        Bad(
            "weight is long",
            put(weight=lambda t: t.repeat(2)),
            "weight: expected L within [1, 136], got L=256",
        ),
        Bad(
            "weight is strided",
            put(weight=lambda t: t.repeat_interleave(2)[::2]),
            "weight: " + LAST_DIM.format(2),
        ),
        Bad(
            "a column has no partner",
            put(kv=one_wider),
            "kv: expected an even number of columns after the L=128 of weight, got 9",
        ),
        Bad("no cosines", put(cos=None), "cos: expected a tensor because R=8, got None"),
        Bad("no sines", put(sin=None), "sin: expected a tensor because R=8, got None"),
        Bad(
            "nothing to rotate",
            put(kv=lambda t: t[:, :128]),
            "cos: expected None because kv and weight have L columns both, got a tensor",
        ),
        Bad(
            "sines without cosines",
            put(kv=lambda t: t[:, :128], cos=None),
            "sin: expected None because kv and weight have L columns both, got a tensor",
        ),
        Bad(
            "cosines are float64",
            put(cos=as_dtype(torch.float64)),
            f"cos: expected {FLOATS}, got float64",
        ),
        Bad(
            "cosines are duplicated",
            put(cos=lambda t: t.repeat(1, 2)),
            "cos: expected shape [3, 4], got [3, 8]",
        ),
        Bad("columns of cos are strided", put(cos=col_major), "cos: " + LAST_DIM.format(3)),
        Bad(
            "sines are bfloat16",
            put(sin=as_dtype(torch.bfloat16)),
            "sin: expected float32 (that of cos), got bfloat16",
        ),
        Bad("a sine is missing", put(sin=lambda t: t[:2]), "sin: expected shape [3, 4], got [2, 4]"),
        Bad("cache is flat", put(cache=lambda t: t.flatten(0, 1)), "cache: expected a 3-D tensor, got 2-D"),
        Bad("cache is wide", put(cache=one_wider), "cache: expected rows of 136 elements, got 137"),
        Bad(
            "L is half a group",
            of_bytes(
                148,
                kv=lambda t: t[:, :72],
                weight=lambda t: t[:64],
            ),
            "weight: expected L a multiple of 128 because cache is uint8, got L=64",
        ),
        Bad(
            "ue8m0 of a cache of floats",
            put(ue8m0=True),
            "ue8m0: expected False because cache is bfloat16, got True",
        ),
        Bad(
            "a slot is too large",
            slots(0, 1, 10),
            "slot_mapping: expected slots within [-1, 9], got 10 at token 2",
        ),
        Bad(
            "eps is negative",
            put(eps=-1e-6),
            "eps: expected a finite number that is not negative, got -1e-06",
        ),
        Bad(
            "eps is NaN",
            put(eps=float("nan")),
            "eps: expected a finite number that is not negative, got nan",
        ),
    ],
}
