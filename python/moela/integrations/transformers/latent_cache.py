"""Layers of transformers' caches whose keys and values, latents and rotated keys, lie side by side in rows.

`moela.mla_decode` takes such rows as they are. transformers' own layers keep two tensors and copy both for
every new token; here a token is written once, into room that was made ahead: half as much again as is there,
and at least 64 rows.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

ROOM = 64  # rows that a new buffer has at least beyond its first ones


class Rows:
    """tensor [B, capacity, L + R], of which the first `used` rows of each request are written.

    A row is written once, so whoever has a view of the first rows keeps it as it is: a layer that was
    cropped, or that was copied while another goes on, gets rows of its own before it writes. Autograd, which
    may have kept such a view for a gradient, is therefore not told of what is written behind it.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        """For `length` rows [B, 1, length, L], [B, 1, length, R] at first; of keys and values the dtype."""
        size, L = length + max(length // 2, ROOM), keys.size(-1)
        self.tensor = keys.new_empty((keys.size(0), size, L + values.size(-1)))
        self.used, self.latent_dim = 0, L

    def append(self, keys: Tensor, values: Tensor) -> None:
        begin, self.used = self.used, self.used + keys.size(-2)
        rows = self.tensor.data[:, None, begin : self.used]  # [B, 1, new, L + R]
        rows[..., : self.latent_dim].copy_(keys)
        rows[..., self.latent_dim :].copy_(values)

    def views(self) -> tuple[Tensor, Tensor]:
        rows = self.tensor[:, None, : self.used]  # [B, 1, used, L + R]
        return rows[..., : self.latent_dim], rows[..., self.latent_dim :]

    def can_take(self, keys: Tensor, count: int) -> bool:
        """Whether `count` rows can be written in place behind `keys`, what a layer holds."""
        is_writable = torch.is_inference_mode_enabled() or not self.tensor.is_inference()
        return is_writable and self.used + count <= self.tensor.size(1) and _is_same(keys, self.views()[0])


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def _continues(new: Tensor, old: Tensor) -> bool:
    """Whether the two are tokens of the same requests in the same form."""
    is_alike = new.dtype == old.dtype and new.device == old.device
    return is_alike and new.shape[:2] == old.shape[:2] and new.size(-1) == old.size(-1)


class LatentLayer(DynamicLayer):
    """A DynamicLayer whose keys and values are views of rows: whatever replaces them replaces the rows."""

    _rows: Rows | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self._takes_rows(key_states, value_states):
            self._rows = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, count = self.get_seq_length(), key_states.size(-2)
        rows = self._rows
        if not (
            before and rows and _is_same(self.values, rows.views()[1]) and rows.can_take(self.keys, count)
        ):
            self._rows = None  # freed before there are others, if nobody has a view
            rows = self._rows = Rows(key_states, value_states, before + count)
            if before:
                rows.append(self.keys, self.values)
        rows.append(key_states, value_states)
        self.keys, self.values = rows.views()
        return self.keys, self.values

    def _takes_rows(self, keys: Tensor, values: Tensor) -> bool:
        """Whether these are written to rows. All else, promotions and errors too, is transformers' own."""
        has_gradient = keys.requires_grad or values.requires_grad or _has_gradient(self)
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and has_gradient):
            return False
        if keys.size(1) != 1 or keys.dtype != values.dtype:
            return False
        is_first = not self.get_seq_length()
        return is_first or (_continues(keys, self.keys) and _continues(values, self.values))

    def reset(self) -> None:
        self._rows = None
        super().reset()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a pickle is a layer of transformers' own, and takes no room along."""
        state = {name: value for name, value in vars(self).items() if name != "_rows"}
        for name in ("keys", "values"):
            state[name] = None if state[name] is None else state[name].clone()
        theirs = next(theirs for theirs, ours in _OURS.items() if ours is type(self))
        return theirs.__new__, (theirs,), state


_OURS: dict[type, type] = {DynamicLayer: LatentLayer}
if hasattr(cache_utils, "DynamicIndexedLayer"):

    class LatentIndexedLayer(LatentLayer, cache_utils.DynamicIndexedLayer):
        """The same with the keys of an indexer."""

    _OURS[cache_utils.DynamicIndexedLayer] = LatentIndexedLayer


def adopt(cache: Cache, layer_idx: int) -> None:
    """Let a cache keep the rows of this layer side by side from its next update on, if it knows how."""
    is_known = layer_idx < len(cache.layers) and not cache.offloading and not torch.compiler.is_compiling()
    if is_known and (ours := _OURS.get(type(cache.layers[layer_idx]))):
        cache.layers[layer_idx].__class__ = ours


def is_trained(cache: Cache, layer_idx: int) -> bool:
    """Whether somebody wants the gradient of what the cache holds for this layer, as of a prefix."""
    return torch.is_grad_enabled() and any(map(_has_gradient, cache.layers[layer_idx:][:1]))


def _has_gradient(layer: CacheLayerMixin) -> bool:
    cached = (getattr(layer, name, None) for name in ("keys", "values"))
    return any(t is not None and t.requires_grad for t in cached)


def rows_of(keys: Tensor, values: Tensor) -> Tensor:
    """[B, 1, S, L], [B, 1, S, R] -> [B, S, L + R]: the rows that they are views of, or else a copy."""
    L, R = keys.size(-1), values.size(-1)
    if not torch.compiler.is_compiling():
        is_beside = values.data_ptr() == keys.data_ptr() + L * keys.element_size()
        is_row = keys.stride() == values.stride() and keys.stride(2) == L + R and keys.stride(3) == 1
        if is_beside and is_row and _shares_storage(keys, values):
            return keys[:, 0].as_strided((keys.size(0), keys.size(2), L + R), (*keys[:, 0].stride(),))
    return torch.cat([keys, values], -1)[:, 0]


def _shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
