"""`moela.patch` and `moela.unpatch`: what they change, what they say, and what they refuse."""

import copy
import types

import models
import moela
import pytest
import torch
from moela import backends
from moela.integrations.transformers import mla_trial, takeover
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

REPORT = """\
moela.patch
on moela now:
{patched_mla}  router      1 {gate:<20}  moe_topk on cpu
  experts     1 {experts:<20}  fused_experts on cpu
left as it was:
{left_mla}  linear     17 Linear                not FP8: left to torch"""
MLA = "  mla         2 DeepseekV3Attention   {}\n"


def vars_of(model: nn.Module) -> dict[str, dict]:
    return {name: dict(vars(module)) for name, module in model.named_modules()}


def assert_untouched(model: nn.Module, before: dict[str, dict]) -> None:
    """Every attribute of every module is the object that it was."""
    after = vars_of(model)
    assert after.keys() == before.keys()
    for name, attributes in after.items():
        assert attributes.keys() == before[name].keys(), name
        assert all(value is before[name][key] for key, value in attributes.items()), name


@pytest.fixture
def model():
    return models.build("deepseek_v3")


@pytest.fixture
def moe(model):
    return model.model.layers[1].mlp


class TestReport:
    def test_says_what_runs_where_and_what_was_left_and_why(self, model, moe, capsys):
        report = moela.patch(model)
        names = {"gate": type(moe.gate).__name__, "experts": type(moe.experts).__name__}
        patched = MLA.format("mla_decode on cpu") if models.has_latents(model) else ""
        left = "" if patched else MLA.format(mla_trial.EXPANDED)
        assert str(report) == REPORT.format(patched_mla=patched, left_mla=left, **names)
        assert capsys.readouterr().out == f"{report}\n"

    def test_counts_by_kind(self, model):
        report = moela.patch(model)
        mla = 2 * models.has_latents(model)
        assert [report.count("patched", k) for k in ("experts", "router", "linear", "mla")] == [1, 1, 0, mla]
        assert report.count("left", "mla") == 2 - mla

    def test_names_each_layer(self, model, moe):
        names = {e.name for e in moela.patch(model, mla=False).entries if e.state == "patched"}
        assert names == {"model.layers.1.mlp.experts", "model.layers.1.mlp.gate"}

    def test_says_already_the_second_time(self, model):
        moela.patch(model)
        before = vars_of(model)
        report = moela.patch(model)
        assert_untouched(model, before)
        assert report.count("patched") == 0
        assert report.count("already") == 2 + 2 * models.has_latents(model)
        assert "already on moela:" in str(report)

    def test_names_steps_where_no_single_op_has_the_gate(self):
        assert "grouped_gemm on cpu" in str(moela.patch(models.build("gpt_oss")))


class TestPatch:
    @pytest.mark.parametrize("name", models.MODELS)
    def test_state_dict_stays_the_same_objects(self, name):
        model = models.build(name)
        before = model.state_dict(keep_vars=True)
        parameters = dict(model.named_parameters())
        moela.patch(model)
        after = model.state_dict(keep_vars=True)
        assert list(after) == list(before)
        assert all(after[k] is before[k] for k in before)
        assert all(p is parameters[n] for n, p in model.named_parameters())

    def test_takes_over_what_it_reports(self, model, moe):
        """Not only the numbers: the layers' own code does not run."""
        moela.patch(model)

        def fail(*args, **kwargs):
            raise AssertionError("transformers' own code ran")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(moe.experts), "forward", fail)
            patch.setattr(type(moe), "route_tokens_to_experts", fail, raising=False)
            if not hasattr(moe, "route_tokens_to_experts"):
                patch.setattr(type(moe.gate), "forward", fail)
            models.logits_of(model, models.prompt())

    def test_kinds_can_be_left_out_and_added_later(self, model):
        report = moela.patch(model, router=False, linear=False, mla=False)
        assert {e.kind for e in report.entries} == {"experts"}
        report = moela.patch(model)
        assert (report.count("already", "experts"), report.count("patched", "router")) == (1, 1)

    def test_router_alone_leaves_experts_to_transformers(self, model):
        exact = models.exact_logits(model, models.prompt())
        moela.patch(model, experts=False)
        assert models.largest(models.logits_of(model, models.prompt()) - exact) < 2.0**-16

    def test_router_tensors_are_those_of_the_module_when_it_is_called(self, model, moe):
        """As `load_state_dict(assign=True)` and `module.half()` replace them."""
        moela.patch(model)
        other = models.build("deepseek_v3", seed=3)
        model.load_state_dict(other.state_dict(), assign=True)
        exact = models.exact_logits(other, models.prompt())
        assert models.largest(models.logits_of(model, models.prompt()) - exact) < 2.0**-16

    def test_a_copy_is_patched_and_has_its_own_weights(self, model):
        moela.patch(model)
        before = models.logits_of(model, models.prompt())
        twin = copy.deepcopy(model)
        models.fill(model, seed=5)
        assert torch.equal(models.logits_of(twin, models.prompt()), before)
        moela.unpatch(twin)
        moela.unpatch(model)

    @pytest.mark.parametrize("backend", [None, "cpu"])
    def test_is_saved_and_loaded_as_a_whole(self, model, tmp_path, backend):
        moela.patch(model, linear=False, backend=backend)
        before = models.logits_of(model, models.prompt())
        torch.save(model, tmp_path / "model.pt")
        twin = torch.load(tmp_path / "model.pt", weights_only=False)
        models.fill(model, seed=5)
        assert torch.equal(models.logits_of(twin, models.prompt()), before)
        moela.unpatch(twin)

    def test_finds_layers_inside_any_wrapper(self, model):
        class Wrapper(nn.Module):
            def __init__(self, inner: nn.Module):
                super().__init__()
                self.vision, self.text = nn.Linear(4, 4), nn.ModuleDict({"model": inner})

        report = moela.patch(Wrapper(model))
        names = [e.name for e in report.entries if e.state == "patched"]
        assert "text.model.model.layers.1.mlp.experts" in names

    def test_hooks_of_a_layer_still_run(self, model, moe):
        """`output_router_logits` is such a hook."""
        seen = []
        moe.experts.register_forward_hook(lambda module, args, out: seen.append(out.shape))
        moela.patch(model)
        models.logits_of(model, models.prompt())
        assert seen == [(14, models.HIDDEN)]

    def test_hooks_of_an_activation_still_run(self, model, moe):
        """Its own, and those of all modules."""
        moela.patch(model)
        expected = models.logits_of(model, models.prompt())
        for register in (moe.experts.act_fn.register_forward_hook, register_module_forward_hook):
            seen = []
            hook = register(lambda module, args, out, seen=seen: seen.append(module))
            got = models.logits_of(model, models.prompt())
            hook.remove()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # other steps, in float32 too
            assert moe.experts.act_fn in seen


class TestUnpatch:
    @pytest.mark.parametrize("name", models.MODELS)
    def test_outputs_are_bitwise_those_of_before(self, name):
        model, inputs = models.build(name), models.prompt()
        before = models.logits_of(model, inputs)
        moela.patch(model)
        models.logits_of(model, inputs)
        moela.unpatch(model)
        assert torch.equal(models.logits_of(model, inputs), before)

    @pytest.mark.parametrize("name", models.MODELS)
    def test_every_attribute_is_the_object_that_it_was(self, name):
        model = models.build(name)
        before = vars_of(model)
        moela.patch(model)
        moela.unpatch(model)
        assert_untouched(model, before)

    def test_gives_back_a_forward_that_the_instance_had(self, model, moe):
        """What kernels libraries leave behind when they undo themselves."""
        own = types.MethodType(type(moe.experts).forward, moe.experts)
        moe.experts.forward = own
        moela.patch(model)
        assert moe.experts.forward is not own
        moela.unpatch(model)
        assert vars(moe.experts)["forward"] is own

    def test_works_behind_the_hooks_of_accelerate(self, model, moe):
        """It moves arguments between devices in a forward of its own, which has to stay in front."""
        experts, calls = moe.experts, []

        def hooked(module, *args, **kwargs):
            calls.append("moved")
            return module._old_forward(*args, **kwargs)

        experts._hf_hook, experts._old_forward = object(), experts.forward
        experts.forward = types.MethodType(hooked, experts)
        before, own = models.logits_of(model, models.prompt()), vars_of(model)
        report = moela.patch(model, router=False)
        assert report.count("patched", "experts") == 1
        calls.clear()
        models.logits_of(model, models.prompt())
        assert calls == ["moved"]
        moela.unpatch(model)
        assert_untouched(model, own)
        assert torch.equal(models.logits_of(model, models.prompt()), before)

    def test_undoes_all_of_several_patches(self, model):
        before = vars_of(model)
        moela.patch(model, router=False)
        moela.patch(model)
        moela.unpatch(model)
        assert_untouched(model, before)

    def test_refuses_a_model_that_is_not_patched(self, model):
        before = vars_of(model)
        with pytest.raises(
            ValueError, match=r"^moela.unpatch: model: expected a patched one, got a Deepseek"
        ):
            moela.unpatch(model)
        assert_untouched(model, before)

    def test_refuses_what_is_no_module(self):
        with pytest.raises(ValueError, match=r"^moela.unpatch: model: expected a torch.nn.Module, got int$"):
            moela.unpatch(3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "options", "message"),
        [
            (lambda: "path", {}, "model: expected a torch.nn.Module, got str"),
            (
                lambda: nn.Linear(4, 4),
                {},
                "model: expected layers that moela can run, got Linear; Linear: not FP8",
            ),
            (lambda: nn.ReLU(), {}, "model: expected layers that moela can run, got ReLU"),
            (
                nn.ReLU,
                dict.fromkeys(("experts", "router", "linear", "mla"), False),
                "expected one of experts,",
            ),
            (
                lambda: models.build("mixtral"),
                {"backend": "gpu"},
                "backend: expected None or one of cuda, triton,",
            ),
            (
                lambda: models.build("mixtral"),
                {"backend": "cuda"},
                "backend: expected one that runs moe_topk on cpu, got 'cuda', which runs on cuda",
            ),
            (
                lambda: models.build("deepseek_v3"),
                {"experts": False, "router": False, "mla": False},
                "model: expected layers",
            ),
        ],
    )
    def test_one_clear_line_and_the_model_as_it_was(self, make, options, message, capsys):
        model = make()
        before = vars_of(model) if isinstance(model, nn.Module) else None
        with pytest.raises(ValueError) as error:  # noqa: PT011
            moela.patch(model, **options)
        assert str(error.value).startswith("moela.patch: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert capsys.readouterr().out == ""
        if before is not None:
            assert_untouched(model, before)

    def test_another_backend_needs_unpatch_first(self, model):
        moela.patch(model, backend="reference")
        before = vars_of(model)
        with pytest.raises(ValueError, match=r"got 'cpu'; moela.unpatch\(model\) first$"):
            moela.patch(model, backend="cpu")
        assert_untouched(model, before)
        assert moela.patch(model, mla=False).count("already") == 2

    @pytest.mark.parametrize("fails_at", [0, 1])
    def test_a_failure_midway_leaves_nothing_behind(self, model, monkeypatch, fails_at):
        before, calls = vars_of(model), []

        def fail(function, backend, owner):
            calls.append(function)
            if len(calls) > fails_at:
                raise RuntimeError("planted")
            return function

        monkeypatch.setattr(takeover, "_on_backend", fail)
        with pytest.raises(RuntimeError, match="planted"):
            moela.patch(model)
        assert_untouched(model, before)


class TestWhatItDoesNotKnow:
    """Planted faults: layers that look like those that moela knows and compute something else."""

    def left(self, model: nn.Module, kind: str, reason: str) -> None:
        inputs, theirs = models.prompt(), models.logits_of(model, models.prompt())
        report = moela.patch(model)
        [entry] = [e for e in report.entries if e.kind == kind and e.state == "left"]
        assert reason in entry.detail
        assert models.largest(models.logits_of(model, inputs) - theirs) < 2.0**-16 * models.largest(theirs)

    def test_experts_with_a_forward_of_their_own_class(self, model, moe):
        class Doubled(type(moe.experts)):
            def forward(self, *args):
                return 2 * super().forward(*args)

        moe.experts.__class__ = Doubled
        self.left(model, "experts", "its class does not use transformers' experts interface")

    def test_experts_whose_instance_has_another_forward(self, model, moe):
        theirs = moe.experts.forward
        moe.experts.forward = lambda *args: 2 * theirs(*args)
        self.left(model, "experts", "this instance has a forward of its own")

    def test_routers_with_another_scaling(self, model, moe):
        owner = moe if hasattr(moe, "route_tokens_to_experts") else moe.gate
        method = "route_tokens_to_experts" if owner is moe else "forward"

        def scaled(self, x):
            return tuple(t * 1.5 if t.is_floating_point() and t.size(-1) == 3 else t for t in theirs(self, x))

        theirs = getattr(type(owner), method)
        owner.__class__ = type("Scaled", (type(owner),), {method: scaled})
        self.left(model, "router", "routes in no way that moela.moe_topk knows")

    def test_routers_whose_instance_has_another_forward(self):
        model = models.build("mixtral")
        gate = model.model.layers[0].mlp.gate
        theirs = gate.forward
        gate.forward = lambda x: tuple(t + t for t in theirs(x)[:2]) + theirs(x)[2:]
        self.left(model, "router", "this instance has a forward of its own")

    def test_blocks_that_change_what_the_router_returns(self):
        """The router of such a block must not be given what the block makes of it."""
        model = models.build("mixtral")
        block = model.model.layers[0].mlp

        class Halved(type(block)):
            def forward(self, x):
                flat = x.view(-1, x.size(-1))
                _, weights, ids = self.gate(flat)
                return self.experts(flat, ids, 0.5 * weights).view(x.shape)

        block.__class__ = Halved
        self.left(model, "router", "Halved changes what the router returns")

    def test_routers_with_noise(self, model, moe):
        if hasattr(moe, "route_tokens_to_experts"):
            pytest.skip("the router of this release makes logits only")
        moe.gate.jitter_noise = 0.1
        self.left(model, "router", "noise")

    def test_layers_of_moela_need_nothing(self, model, moe):
        moe.experts = moela.nn.Experts.from_module(moe.experts)
        report = moela.patch(model)
        assert report.count("patched", "experts") == report.count("left", "experts") == 0

    def test_experts_in_a_list(self):
        class Block(nn.Module):
            def __init__(self, inner: nn.Module):
                super().__init__()
                self.gate, self.experts, self.inner = nn.Linear(4, 2), nn.ModuleList([nn.Linear(4, 4)]), inner

        report = moela.patch(Block(models.build("mixtral")))
        reasons = {e.name: e.detail for e in report.entries if e.state == "left"}
        assert reasons["experts"] == "a list of modules: moela needs their weights in one tensor"


class TestBackends:
    @pytest.mark.parametrize("backend", ["reference", "cpu"])
    @pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss"])
    def test_each_layer_runs_on_the_backend_that_was_named(self, name, backend, monkeypatch):
        if backends.why_not(backend, "fused_experts", "cpu"):
            pytest.skip(backends.why_not(backend, "fused_experts", "cpu"))
        model, inputs = models.build(name), models.prompt()
        exact, used = models.exact_logits(model, inputs), []

        class Spy(backends.use_backend):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func.namespace == "moela":
                    used.append((self.name, func._schema.name))
                return super().__torch_dispatch__(func, types, args, kwargs)

        monkeypatch.setattr(backends, "use_backend", Spy)
        report = moela.patch(model, backend=backend)
        assert {e.detail.split()[-1] for e in report.entries if e.state == "patched"} == {backend}
        assert models.largest(models.logits_of(model, inputs) - exact) < 2.0**-16 * models.largest(exact)
        assert {name for name, _ in used} == {backend}
        assert "moela::moe_topk" in {op for _, op in used}

    def test_the_backend_of_the_process_is_what_the_report_says(self, model, monkeypatch):
        monkeypatch.setenv("MOELA_BACKEND", "reference")
        assert "fused_experts on reference" in str(moela.patch(model))

    def test_layers_on_several_devices_have_each_their_own(self):
        model = models.build("mixtral")
        model.model.layers[1].to("meta")
        details = {
            (e.name.split(".")[2], e.detail) for e in moela.patch(model, router=False, linear=False).entries
        }
        assert details == {
            (str(i), f"fused_experts on {backends.pick('fused_experts', torch.device(device))}")
            for i, device in enumerate(("cpu", "meta"))
        }
