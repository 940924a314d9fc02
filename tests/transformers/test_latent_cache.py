"""Cache layers whose latents and rotated keys lie side by side: what transformers' own layers hold."""

import copy
import pickle
import weakref

import models
import pytest
import torch
from transformers import cache_utils

latent_cache = pytest.importorskip("moela.integrations.transformers.latent_cache")
L, R = 24, 8


def new(count: int, B: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, 1, count, L, generator=g), torch.randn(B, 1, count, R, generator=g)


def both() -> list[cache_utils.Cache]:
    """transformers' own cache and one whose first layer was adopted."""
    caches = [cache_utils.DynamicCache(config=models.config_of("deepseek_v3")) for _ in range(2)]
    latent_cache.adopt(caches[1], 0)
    assert type(caches[1].layers[0]) is latent_cache.LatentLayer
    return caches


def assert_same(caches: list[cache_utils.Cache]) -> None:
    theirs, mine = (cache.layers[0] for cache in caches)
    assert mine.get_seq_length() == theirs.get_seq_length()
    assert torch.equal(mine.keys, theirs.keys)
    assert torch.equal(mine.values, theirs.values)


def is_joined(layer: cache_utils.DynamicLayer) -> bool:
    return latent_cache.rows_of(layer.keys, layer.values).data_ptr() == layer.keys.data_ptr()


def crop(cache: cache_utils.Cache, count: int) -> None:
    """Take `count` tokens back; until 5.2x by the length that is left."""
    length = cache.get_seq_length()
    try:
        cache.crop(-count)
    except Exception:
        cache.crop(length - count)


CHANGES = {
    "nothing": lambda cache: None,
    "crop": lambda cache: crop(cache, 2),
    "beams": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([1])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_holds_what_a_dynamic_layer_holds(change):
    caches = both()
    for count in (5, 1, 1):
        for cache in caches:
            cache.update(*new(count, seed=count), 0)
        assert_same(caches)
    for cache in caches:
        CHANGES[change](cache)
    B = {"repeat": 4, "select": 1}.get(change, 2)
    for count in (1, 2, 1):
        for cache in caches:
            keys, values = cache.update(*new(count, B, seed=9 + count), 0)
        assert keys is caches[1].layers[0].keys
        assert values is caches[1].layers[0].values
        assert_same(caches)
        assert is_joined(caches[1].layers[0])


@pytest.mark.parametrize("name", ["keys", "values"])
def test_one_of_the_two_that_somebody_replaced(name):
    caches = both()
    for cache in caches:
        cache.update(*new(5), 0)
        setattr(cache.layers[0], name, getattr(cache.layers[0], name) * 2)
        cache.update(*new(1, seed=1), 0)
    assert_same(caches)


def test_a_token_is_written_and_none_is_copied():
    cache = both()[1]
    cache.update(*new(5), 0)
    place = cache.layers[0].keys.data_ptr()
    for _ in range(latent_cache.ROOM):
        cache.update(*new(1), 0)
    assert cache.layers[0].keys.data_ptr() == place
    cache.update(*new(1), 0)  # no room left
    assert cache.layers[0].keys.data_ptr() != place


def test_room_grows_with_what_is_there():
    """So that a token is copied a constant number of times, however long the text becomes."""
    cache, places = both()[1], set()
    for _ in range(2000):
        cache.update(*new(1, B=1), 0)
        places.add(cache.layers[0]._rows.tensor.size(1))
    assert len(places) < 12


def test_a_cache_that_is_full_already_is_adopted_with_what_it_has():
    caches = [cache_utils.DynamicCache() for _ in range(2)]
    for cache in caches:
        cache.update(*new(5), 0)
    latent_cache.adopt(caches[1], 0)
    for cache in caches:
        cache.update(*new(1, seed=1), 0)
    assert_same(caches)
    assert is_joined(caches[1].layers[0])


def test_who_has_an_older_view_keeps_it():
    """A layer that took tokens back does not write over what others still hold."""
    cache = both()[1]
    keys, values = cache.update(*new(5), 0)
    before = keys.clone(), values.clone()
    crop(cache, 2)
    cache.update(*new(3, seed=1), 0)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(how):
    first = both()[1].layers[0]
    first.update(*new(5))
    second = how(first)
    first.update(*new(1, seed=1))
    second.update(*new(1, seed=2))
    for layer, seed in ((first, 1), (second, 2)):
        assert torch.equal(layer.keys[:, :, -1:], new(1, seed=seed)[0])
        assert torch.equal(layer.values[:, :, :5], new(5)[1])


def pickled(layer: cache_utils.DynamicLayer) -> cache_utils.DynamicLayer:
    return pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickled])
@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32"])
def test_a_copy_is_transformers_own_and_takes_no_room_along(how, name):
    cache = cache_utils.DynamicCache(config=models.config_of(name))
    theirs = type(cache.layers[0])
    latent_cache.adopt(cache, 0)
    cache.update(*new(5), 0)
    twin, layer = how(cache.layers[0]), cache.layers[0]
    assert type(twin) is theirs
    assert type(layer) is not theirs
    assert vars(twin).keys() == vars(layer).keys() - {"_rows"}
    for mine, copied in ((layer.keys, twin.keys), (layer.values, twin.values)):
        assert torch.equal(mine, copied)
        assert copied.untyped_storage().nbytes() == copied.nbytes
    assert type(how(theirs())) is theirs


def test_a_copy_of_one_that_is_empty():
    cache = both()[1]
    assert copy.deepcopy(cache).layers[0].keys is None


def test_reset_frees_the_rows():
    theirs, cache = both()
    theirs.update(*new(5), 0)
    theirs.reset()
    if theirs.layers[0].keys is not None:
        pytest.skip("this release zeroes what a layer holds, and keeps it")
    storage = weakref.ref(cache.update(*new(5), 0)[0].untyped_storage())
    cache.reset()
    assert storage() is None


@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("then", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_values", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_promoted(first, then, of_values):
    """A model continued in another dtype, and autocast, where values have one of their own."""
    caches = both()
    for i, dtype in enumerate((first, first, then, first)):
        keys, values = new(2, seed=i)
        for cache in caches:
            cache.update(keys.to(dtype), values.to(of_values if i else dtype), 0)
        assert caches[1].layers[0].keys.dtype == caches[0].layers[0].keys.dtype
        assert caches[1].layers[0].values.dtype == caches[0].layers[0].values.dtype
        assert_same(caches)


def test_tokens_of_fewer_requests_are_refused():
    messages = []
    for cache in both():
        cache.update(*new(5), 0)
        with pytest.raises(RuntimeError, match="Sizes of tensors must match") as error:
            cache.update(*new(1, B=1), 0)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_begun_in_inference_mode_and_continued_outside():
    caches = both()
    with torch.inference_mode():
        for cache in caches:
            cache.update(*new(5), 0)
    for cache in caches:
        cache.update(*new(1, seed=1), 0)
    assert_same(caches)


def test_gradients_pass_through_what_was_cached():
    cache = both()[1]
    keys, values = (t.requires_grad_() for t in new(5))
    cache.update(keys, values, 0)
    more = [t.requires_grad_() for t in new(1, seed=1)]
    cached = cache.update(*more, 0)
    (cached[0].sum() + cached[1].sum()).backward()
    assert all(torch.equal(t.grad, torch.ones_like(t)) for t in (keys, values, *more))


def test_gradients_of_what_read_the_cache_before_it_grew():
    """Frozen latents and a trained `kv_b_proj`, over several steps."""
    grads = []
    for cache in both():
        w, loss = torch.ones(3, L, requires_grad=True), 0.0
        for i in range(3):
            keys, _ = cache.update(*new(2, B=1, seed=i), 0)
            loss = loss + torch.nn.functional.linear(keys, w).square().sum()
        loss.backward()
        grads.append(w.grad)
    torch.testing.assert_close(*grads)


def test_leaves_layers_of_another_kind_as_they_are():
    config = models.config_of("mixtral", sliding_window=4)
    cache = cache_utils.DynamicCache(config=config)
    kinds = [type(layer) for layer in cache.layers]
    latent_cache.adopt(cache, 0)
    latent_cache.adopt(cache, 99)
    assert [type(layer) for layer in cache.layers] == kinds


@pytest.mark.parametrize("S", [1, 4])
def test_rows_that_are_not_side_by_side_are_copied(S):
    keys, values = new(S)
    rows = latent_cache.rows_of(keys, values)
    assert torch.equal(rows, torch.cat([keys, values], -1)[:, 0])
    swapped = torch.cat([values, keys], -1)
    mine = latent_cache.rows_of(swapped[..., R:], swapped[..., :R])
    assert torch.equal(mine, rows)
