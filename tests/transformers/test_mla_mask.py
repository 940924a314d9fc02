"""Masks of transformers as tokens that a query sees."""

import copy

import pytest
import torch
from moela.integrations.transformers.mla_mask import chosen_tokens, tokens_of

LOWEST = torch.finfo(torch.float32).min


def expected(sees: torch.Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in sees[:, 0].flatten(0, 1)]


def listed(tokens) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(*tokens, strict=True)]


@pytest.fixture
def sees() -> torch.Tensor:
    sees = torch.rand(3, 1, 2, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    sees[0, 0, 0], sees[1, 0, 1] = False, True  # a query that sees nothing, and one that sees all
    return sees


def test_of_yes_and_no(sees):
    tokens = tokens_of(sees)
    assert listed(tokens) == expected(sees)
    assert tokens.block_table.dtype == tokens.seqlens.dtype == torch.int32


@pytest.mark.parametrize("lowest", [LOWEST, -torch.inf])
def test_of_what_is_added(sees, lowest):
    assert tokens_of(torch.zeros(sees.shape).masked_fill(~sees, lowest)) is None  # a query has no key
    sees[0, 0, 0, 3] = True
    assert listed(tokens_of(torch.zeros(sees.shape).masked_fill(~sees, lowest))) == expected(sees)


@pytest.mark.parametrize("value", [-1.0, 1e-30, torch.nan, torch.inf])
def test_one_other_number_makes_it_unknown(sees, value):
    mask = torch.zeros(sees.shape)
    mask[0, 0, 0, 0] = value
    assert tokens_of(mask) is None


@pytest.mark.parametrize("shape", [(3, 11), (3, 4, 2, 11)])
def test_other_shapes_are_unknown(shape):
    assert tokens_of(torch.ones(shape, dtype=torch.bool)) is None


def test_is_worked_out_once(sees):
    assert tokens_of(sees) is tokens_of(sees)
    before = listed(tokens_of(sees))
    sees[..., 0] ^= True
    assert listed(tokens_of(sees)) != before


def test_a_copy_is_looked_at(sees):
    """Its version begins anew, and may become that of the original."""
    for column in range(4):
        sees[..., column].logical_not_()
    tokens_of(sees)
    twin = copy.deepcopy(sees)
    for column in range(sees._version - twin._version):
        twin[..., column].logical_not_()
    assert twin._version == sees._version
    assert listed(tokens_of(twin)) == expected(twin)


def test_an_inference_tensor_is_looked_at_each_time(sees):
    with torch.inference_mode():
        mask = sees.clone()
        tokens_of(mask)
        mask[..., 0] ^= True
        assert listed(tokens_of(mask)) == expected(mask)


def test_chosen_tokens_are_those_that_may_be_seen(sees):
    g = torch.Generator().manual_seed(1)
    indices = torch.stack([torch.randperm(11, generator=g)[:6] for _ in range(6)]).view(3, 2, 6).int()
    rows = zip(indices.flatten(0, 1), expected(sees), strict=True)
    wanted = [[i for i in row.tolist() if i in seen] for row, seen in rows]
    assert listed(chosen_tokens(indices, sees)) == wanted
    assert listed(chosen_tokens(indices, torch.zeros(sees.shape).masked_fill(~sees, LOWEST))) == wanted
