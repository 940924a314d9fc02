"""Latent attention on moela in whole models: what they compute, and when it is absorbed."""

import copy

import latent
import models
import moela
import pytest
import torch
from moela.integrations.transformers import mla, mla_expanded
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

ATTENTION = ("eager", "sdpa")
OPTIONS = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def absorbed(monkeypatch) -> list[int]:
    """Filled with the new tokens of each call that is answered absorbed."""
    attend = mla.absorbed_attention

    def note(module, query, *args, **kwargs):
        latent.calls.append(query.size(2))
        return attend(module, query, *args, **kwargs)

    monkeypatch.setitem(mla.AttentionInterface._global_mapping, mla.NAME, note)
    return latent.calls


@pytest.fixture
def expanded(monkeypatch) -> list[int]:
    """Filled with the tokens of each prompt that mla_prefill reads."""
    calls, attend = [], mla_expanded.attend_among

    def note(q, *args):
        calls.append(q.size(1))
        return attend(q, *args)

    monkeypatch.setattr(mla_expanded, "attend_among", note)
    return calls


class TestWholeModels:
    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("name", latent.NAMES)
    def test_a_left_padded_batch_decodes_as_transformers_does(self, name, attention, absorbed):
        stock, patched = latent.pair(name, attention=attention)
        inputs, counts = models.prompt(rows=3), [1] * 8
        theirs = latent.read(stock, inputs, counts)
        latent.assert_same(latent.read(patched, inputs, counts), theirs)
        assert absorbed == [1] * (8 * len(list(latent.layers_of(patched))))

    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("name", latent.NAMES)
    def test_the_prompt_is_read_expanded(self, name, attention, absorbed, expanded):
        """By moela where torch's attention would, and needs no mask; else by the layer's own, bit for bit."""
        stock, patched = latent.pair(name, attention=attention)
        inputs = models.prompt(rows=1)
        theirs, mine = models.logits_of(stock, inputs), models.logits_of(patched, inputs)
        latent.assert_same(mine, theirs)
        assert torch.equal(mine, theirs) or expanded
        assert not expanded or attention == "sdpa"
        assert not absorbed

    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "glm_moe_dsa", "kimi_linear"])
    def test_several_tokens_at_once_behind_the_cache(self, name, attention, absorbed):
        stock, patched = latent.pair(name, attention=attention)
        inputs, counts = models.prompt(rows=2), [3, 1, 2]
        latent.assert_same(latent.read(patched, inputs, counts), latent.read(stock, inputs, counts))
        assert set(absorbed) == {1, 2, 3}

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"num_beams": 3},
            {"num_beams": 2, "num_return_sequences": 2},
            {"cache_implementation": "static"},
            {"prefill_chunk_size": 3},
        ],
        ids=["greedy", "beams", "beams-2", "static", "chunks"],
    )
    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32"])
    def test_generates_the_same_tokens(self, name, attention, options, absorbed):
        stock, patched = latent.pair(name, attention=attention)
        inputs = {k: v for k, v in models.prompt(rows=3).items() if k != "position_ids"}
        theirs, mine = (m.generate(**inputs, **OPTIONS | options) for m in (stock, patched))
        assert torch.equal(mine.sequences, theirs.sequences)
        latent.assert_same(torch.stack(mine.logits), torch.stack(theirs.logits))
        assert absorbed

    @pytest.mark.parametrize("way", ["assistant", "prompt lookup"])
    def test_speculative_decoding_which_takes_tokens_back(self, way, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        assistant = models.build("deepseek_v3", seed=1, attention="sdpa")
        more = {"assistant_model": assistant} if way == "assistant" else {"prompt_lookup_num_tokens": 3}
        ids = models.prompt(rows=1)["input_ids"].repeat(1, 3)
        theirs, mine = (m.generate(ids, **OPTIONS | more) for m in (stock, patched))
        assert torch.equal(mine.sequences, theirs.sequences)
        assert absorbed
        assert way == "prompt lookup" or any(count > 1 for count in absorbed)

    def test_a_long_decode_that_outgrows_its_first_rows(self, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa", max_position_embeddings=256)
        inputs, counts = models.prompt(rows=1), [1] * 150
        latent.assert_same(latent.read(patched, inputs, counts), latent.read(stock, inputs, counts))

    def test_bfloat16_is_closer_to_the_exact_layer_than_twice_transformers(self, absorbed):
        """The second token of one layer, for inputs of the same bits."""
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        layer, own = next(latent.layers_of(patched)), next(latent.layers_of(stock))
        g = torch.Generator().manual_seed(0)
        rows = torch.randn(1, 40, models.HIDDEN, generator=g).bfloat16()
        positions = torch.arange(40)[None]
        angles = stock.model.rotary_emb(rows, positions)
        results = {}
        with torch.no_grad():
            for what, module, dtype in (
                ("exact", copy.deepcopy(own), torch.float64),
                ("stock", own, torch.bfloat16),
                ("moela", layer, torch.bfloat16),
            ):
                module.to(torch.bfloat16).to(dtype)
                cache = models.transformers.DynamicCache()
                for part in (slice(0, 39), slice(39, 40)):
                    out = module(
                        hidden_states=rows[:, part].to(dtype),
                        position_embeddings=tuple(t[:, part].to(dtype) for t in angles),
                        attention_mask=None,
                        **latent.with_cache(cache),
                    )[0]
                results[what] = out.double()
        assert absorbed
        error, allowed = (models.rms(results[k] - results["exact"]) for k in ("moela", "stock"))
        assert error <= 2 * allowed + 2.0**-9 * models.rms(results["exact"])


class TestMasks:
    """Masks of four dimensions that a caller made: who sees what."""

    def run(self, model: nn.Module, mask: torch.Tensor, s_q: int | None = None) -> torch.Tensor:
        inputs, s_q = models.prompt(rows=2), s_q or mask.size(2)
        with torch.no_grad():
            out = model(**inputs, use_cache=True)
            cache = latent.with_cache(latent.cache_of(out))
            ids, positions = torch.full((2, s_q), 5), torch.arange(s_q).expand(2, -1) + 7
            return model(input_ids=ids, attention_mask=mask, position_ids=positions, **cache).logits

    @pytest.mark.parametrize("s_q", [1, 2])
    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
    def test_any_that_says_yes_or_no(self, dtype, s_q, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        sees = torch.rand(2, 1, s_q, 7 + s_q, generator=torch.Generator().manual_seed(0)) < 0.5
        sees[..., -1] = True
        lowest = torch.finfo(torch.float32).min
        mask = sees if dtype == torch.bool else torch.zeros(sees.shape).masked_fill(~sees, lowest)
        latent.assert_same(self.run(patched, mask), self.run(stock, mask))
        assert absorbed == [s_q] * 2

    def test_one_that_adds_something_else_is_left_to_the_layer(self, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        mask = torch.rand(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(self.run(patched, mask), self.run(stock, mask))
        assert not absorbed

    def test_one_of_yes_and_no_which_eager_adds_as_ones_is_left_to_the_layer(self, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="eager")
        mask = torch.rand(2, 1, 1, 8, generator=torch.Generator().manual_seed(0)) < 0.5
        assert torch.equal(self.run(patched, mask), self.run(stock, mask))
        assert not absorbed

    @pytest.mark.parametrize("attention", ATTENTION)
    @pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -torch.inf])
    @pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32"])
    def test_one_that_leaves_a_query_no_key_is_left_to_the_layer(self, name, lowest, attention, absorbed):
        """Which averages all values, or gives NaN: a number that is added hides keys only beside others."""
        stock, patched = latent.pair(name, attention=attention)
        mask = torch.zeros(2, 1, 2, 9)
        mask[0, 0, 1] = lowest
        torch.testing.assert_close(
            self.run(patched, mask), self.run(stock, mask), rtol=0, atol=0, equal_nan=True
        )
        assert not absorbed

    def test_one_for_each_head_is_left_to_the_layer(self, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        mask = torch.rand(2, 4, 1, 8, generator=torch.Generator().manual_seed(0)) < 0.7
        mask[..., -1] = True
        assert torch.equal(self.run(patched, mask), self.run(stock, mask))
        assert not absorbed

    @pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 1, 2, 9)])
    def test_one_for_several_queries_or_requests_is_left_to_the_layer(self, shape, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.7
        assert torch.equal(self.run(patched, mask, 2), self.run(stock, mask, 2))
        assert not absorbed

    def test_one_that_is_changed_in_place_is_looked_at_again(self):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        mask = torch.ones(2, 1, 1, 8, dtype=torch.bool)
        before = self.run(patched, mask)
        mask[..., :4] = False
        after = self.run(patched, mask)
        assert not torch.equal(before, after)
        latent.assert_same(after, self.run(stock, mask))


class TestLeftToTheLayer:
    """Where only the layer's own attention gives what is asked for: bit by bit what it gives."""

    def decode(self, model: nn.Module, **options):
        out = model(**models.prompt(rows=1), use_cache=True)
        step = {"input_ids": torch.tensor([[5]]), **latent.with_cache(latent.cache_of(out))}
        return model(**step, **options)

    def test_gradients(self, absorbed):
        stock, patched = latent.pair("deepseek_v3")
        for model in (stock, patched):
            self.decode(model).logits.square().sum().backward()
        grads = {n: p.grad for n, p in stock.named_parameters() if p.grad is not None}
        assert grads
        assert all(torch.equal(patched.get_parameter(n).grad, g) for n, g in grads.items())
        assert not absorbed

    @pytest.mark.parametrize("name", ["model.layers.0.self_attn.kv_b_proj", "model.embed_tokens"])
    def test_gradients_of_one_weight(self, name, absorbed):
        """All else is frozen, the cache too: either the layer or its input has a gradient."""
        grads = []
        for model in latent.pair("deepseek_v3"):
            model.requires_grad_(False)
            cache = latent.with_cache(latent.cache_of(model(**models.prompt(rows=1), use_cache=True)))
            weight = model.get_submodule(name).weight.requires_grad_()
            model(input_ids=torch.tensor([[5]]), **cache).logits.square().sum().backward()
            grads.append(weight.grad)
        assert torch.equal(*grads)
        assert not absorbed

    def test_gradients_of_a_prefix_in_the_cache(self, absorbed):
        """As prefix tuning has them: all else is frozen, and several tokens follow, some at a time."""
        grads = []
        for model in latent.pair("deepseek_v3", attention="sdpa"):
            model.requires_grad_(False)
            cache = latent.cache_of(model(**models.prompt(rows=1), use_cache=True))
            for layer in cache.layers:
                layer.keys, layer.values = (
                    t.detach().clone().requires_grad_() for t in (layer.keys, layer.values)
                )
            prefix = [t for layer in cache.layers for t in (layer.keys, layer.values)]
            loss = 0.0
            for ids in ([[5, 6]], [[7]]):
                logits = model(input_ids=torch.tensor(ids), **latent.with_cache(cache)).logits
                loss = loss + logits.square().sum()
            loss.backward()
            grads.append([t.grad for t in prefix])
        for mine, theirs in zip(grads[1], grads[0], strict=True):  # the prompt itself is read by moela
            latent.assert_same(mine, theirs)
        assert not absorbed

    @pytest.mark.parametrize("name", ["deepseek_v3", "glm_moe_dsa"])
    def test_training_goes_as_before(self, name, absorbed):
        stock, patched = latent.pair(name)
        inputs = models.prompt(rows=1, length=9)
        theirs, mine = (models.gradients(m.train(), inputs) for m in (stock, patched))
        assert all(torch.equal(mine[n], g) for n, g in theirs.items())
        assert not absorbed

    def test_training_on_torchs_attention_has_its_gradients(self, expanded):
        """Of prompts without padding; one with padding is the layer's own, bit for bit."""
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        inputs = models.prompt(rows=1, length=9)
        theirs, mine = (models.gradients(m.train(), inputs) for m in (stock, patched))
        for name, grad in theirs.items():
            latent.assert_same(mine[name], grad)
        assert expanded == [9, 9]
        padded = models.prompt(rows=3)
        assert torch.equal(models.logits_of(patched, padded), models.logits_of(stock, padded))
        assert expanded == [9, 9]

    def test_a_prompt_whose_tokens_see_all_others(self, expanded):
        pair = latent.pair("deepseek_v3", attention="sdpa")
        for model in pair:
            for layer in latent.layers_of(model):
                layer.is_causal = False
        assert torch.equal(*(models.logits_of(model, models.prompt(rows=1)) for model in pair))
        assert not expanded

    def test_float64(self, absorbed):
        stock, patched = latent.pair("deepseek_v3")
        with torch.no_grad():
            results = [self.decode(m.double()).logits for m in (stock, patched)]
        assert torch.equal(*results)
        assert not absorbed

    def test_a_mask_of_one_key_for_all(self, absorbed):
        stock, patched = latent.pair("deepseek_v3")
        mask = torch.zeros(1, 1, 1, 1)
        with torch.no_grad():
            results = [self.decode(m, attention_mask=mask).logits for m in (stock, patched)]
        assert torch.equal(*results)
        assert not absorbed

    @pytest.mark.parametrize("attention", ATTENTION)
    def test_dropout(self, attention, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention=attention, attention_dropout=0.5)
        results = []
        for model in (stock, patched):
            torch.manual_seed(0)
            with torch.no_grad():
                results.append(self.decode(model.train()).logits)
        assert torch.equal(*results)
        assert not absorbed

    @pytest.mark.parametrize("of_config", [True, False])
    def test_attention_weights(self, of_config, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="eager")
        for model in (stock, patched):
            model.config.output_attentions = of_config
        options = {} if of_config else {"output_attentions": True}
        with torch.no_grad():
            theirs, mine = (self.decode(m, **options).attentions for m in (stock, patched))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert mine[0].shape == (1, 4, 1, 8)
        assert not absorbed

    def test_autocast(self, absorbed):
        stock, patched = latent.pair("deepseek_v3")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(self.decode(patched).logits, self.decode(stock).logits)
        assert not absorbed

    @pytest.mark.parametrize("what", ["a hook", "a bias", "an adapter"])
    def test_a_projection_that_became_more_than_a_weight(self, what, absorbed):
        stock, patched = latent.pair("deepseek_v3")

        class Adapted(nn.Linear):
            def forward(self, x):
                return 1.5 * super().forward(x)

        for model in (stock, patched):
            for layer in latent.layers_of(model):
                kv_b_proj = layer.kv_b_proj
                if what == "a hook":
                    kv_b_proj.register_forward_hook(lambda module, args, out: 1.5 * out)
                elif what == "a bias":
                    kv_b_proj.bias = nn.Parameter(torch.ones(kv_b_proj.out_features))
                else:
                    kv_b_proj.__class__ = Adapted
        with torch.no_grad():
            assert torch.equal(self.decode(patched).logits, self.decode(stock).logits)
        assert not absorbed

    def test_an_expansion_of_its_own_that_a_layer_got_afterwards(self, absorbed):
        pair = latent.pair("deepseek_v3", attention="sdpa")
        for model in pair:
            for layer in latent.layers_of(model):
                layer.expand_kv = lambda *latents, theirs=layer.expand_kv: tuple(
                    2 * t for t in theirs(*latents)
                )
        with torch.no_grad():
            results = [self.decode(model).logits for model in pair]
        latent.assert_same(*results)  # prompts are read by moela
        assert not absorbed

    def test_a_hook_of_all_modules_sees_what_it_would_see(self, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        names = {module: name for m in (stock, patched) for name, module in m.named_modules()}
        results, seen = [], ([], [])
        for model, calls in zip((stock, patched), seen, strict=True):
            hook = register_module_forward_hook(lambda module, *_, calls=calls: calls.append(names[module]))
            with torch.no_grad():
                results.append(self.decode(model).logits)
            hook.remove()
        assert seen[0] == seen[1]
        assert not absorbed
        latent.assert_same(*results)
        with torch.no_grad():
            self.decode(patched)
        assert absorbed

    def test_another_attention_that_was_chosen_afterwards(self, absorbed):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(
            "a_users", models.transformers.integrations.sdpa_attention.sdpa_attention_forward
        )
        AttentionMaskInterface.register("a_users", sdpa_mask)
        for model in (stock, patched):
            model.set_attn_implementation("a_users")
        with torch.no_grad():
            assert torch.equal(self.decode(patched).logits, self.decode(stock).logits)
        assert not absorbed


class TestPatch:
    def test_unpatched_goes_on_with_the_same_cache(self):
        stock, patched = latent.pair("deepseek_v3", attention="sdpa")
        with torch.no_grad():
            outs = [m(**models.prompt(rows=1), use_cache=True) for m in (stock, patched)]
            for token in (5, 6):
                steps = [
                    {"input_ids": torch.tensor([[token]])} | latent.with_cache(latent.cache_of(o))
                    for o in outs
                ]
                outs = [m(**step, use_cache=True) for m, step in zip((stock, patched), steps, strict=True)]
                latent.assert_same(outs[1].logits, outs[0].logits)
                if token == 5:
                    moela.unpatch(patched)

    def test_a_copy_has_its_own_weights(self, absorbed):
        stock, patched = latent.pair("deepseek_v3")
        inputs = models.prompt(rows=1)
        before = latent.read(patched, inputs, [1, 1])
        twin = copy.deepcopy(patched)
        models.fill(patched, seed=5)
        assert torch.equal(latent.read(twin, inputs, [1, 1]), before)
        models.fill(stock, seed=5)
        latent.assert_same(latent.read(patched, inputs, [1, 1]), latent.read(stock, inputs, [1, 1]))

    def test_saves_and_loads_as_it_was(self, tmp_path):
        stock, patched = latent.pair("deepseek_v3")
        patched.save_pretrained(tmp_path)
        eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
        loaded = type(stock).from_pretrained(tmp_path, **eager)
        assert loaded.state_dict().keys() == stock.state_dict().keys()
        assert torch.equal(
            models.logits_of(loaded, models.prompt()), models.logits_of(stock, models.prompt())
        )

    @pytest.mark.parametrize("backend", ["reference", "cpu"])
    def test_runs_on_the_backend_that_was_named(self, backend, absorbed):
        stock, patched = latent.pair("deepseek_v3")
        moela.unpatch(patched)
        report = moela.patch(patched, experts=False, router=False, linear=False, backend=backend)
        assert {e.detail for e in report.entries} == {f"mla_decode on {backend}"}
        inputs = models.prompt()
        latent.assert_same(latent.read(patched, inputs, [1]), latent.read(stock, inputs, [1]))
        assert absorbed
