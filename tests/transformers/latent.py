"""Models with latent attention, as transformers runs them and on moela, for the tests of this folder."""

from collections.abc import Iterator, Sequence

import models
import moela
import pytest
import torch
from moela.integrations.transformers.mla_trial import EXPANDED
from torch import Tensor, nn

NAMES = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa", *models.MLA_MODELS)
# Both sum products in float32, of up to some hundred terms, a dozen times one after the other.
NOISE = 2.0**-16
calls: list[int] = []  # the new tokens of each that was answered absorbed, since the last `pair`


def pair(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """(stock, patched), the second with its attention on moela and nothing else."""
    stock, patched = models.build(name, **options), models.build(name, **options)
    try:
        moela.patch(patched, experts=False, router=False, linear=False)
    except ValueError as error:
        if EXPANDED not in str(error):
            raise
        pytest.skip("this release caches the keys of every head")
    calls.clear()  # those of the trial
    return stock, patched


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if "kv_b_proj" in module._modules:
            yield module


def cache_of(out) -> object:
    """Of a model's output; called past_key_values until, and cache since, transformers 5.24."""
    return out["cache" if "cache" in out else "past_key_values"]


def with_cache(cache: object) -> dict[str, object]:
    return {"cache" if models.version() >= (5, 24) else "past_key_values": cache}


@torch.no_grad()
def read(
    model: nn.Module, inputs: dict[str, Tensor], counts: Sequence[int], seed: int = 3, **options
) -> Tensor:
    """[B, 1 + sum(counts), VOCAB]: the last logits of a prompt, then those of some more tokens at a time."""
    g, ids = torch.Generator().manual_seed(seed), inputs["input_ids"]
    mask = inputs["attention_mask"]
    out = model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
    logits = [out.logits[:, -1:]]
    for count in counts:
        new = torch.randint(2, models.VOCAB, (len(ids), count), generator=g)
        mask = torch.cat([mask, mask.new_ones(new.shape)], 1)
        positions = (mask.cumsum(-1) - 1)[:, -count:]
        given = {"input_ids": new, "attention_mask": mask, "position_ids": positions} | with_cache(
            cache_of(out)
        )
        out = model(**given, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def assert_same(mine: Tensor, theirs: Tensor) -> None:
    assert mine.shape == theirs.shape
    assert models.largest(mine.double() - theirs.double()) <= NOISE * models.largest(theirs.double())
