"""moela inside other libraries; each of them is imported only when it is asked for."""

import importlib
import re
from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from moela.integrations.transformers.report import PatchReport

OLDEST_TRANSFORMERS = (5, 4)  # the first with a registry for the experts of FP8 models


def register() -> None:
    """Make "moela" a name for transformers' `experts_implementation`.

    >>> moela.register()
    >>> model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="moela")

    It works likewise in `from_config` and in `model.set_experts_implementation("moela")`, for every model
    whose experts stand under `@use_experts_implementation`, FP8 ones with blocks of 128 x 128 included.
    Nothing else changes: a model that does not ask for it is untouched. Calling it again does nothing.

    Numerics: as `moela.nn.run_experts`.

    Raises ImportError without transformers 5.4 or later.
    """
    _load("experts", "moela.register").register()


def patch(
    model: nn.Module,
    *,
    experts: bool = True,
    router: bool = True,
    linear: bool = True,
    mla: bool = True,
    backend: str | None = None,
) -> "PatchReport":
    """Run the layers of a transformers model on moela, in place, and print which.

    Parameters, buffers and the state dict stay the same objects; only the forward of each layer is another,
    until `unpatch`. Layers that moela does not know for certain are left as they are, and the report says
    why. Where a layer stands in the model does not matter: multimodal wrappers and adapters around it are
    fine, and so is another device for each. Patching a patched model changes nothing, but kinds of layers
    that were left out can be added.

    Args:
        model: a transformers model, or a module that has one in it.
        experts: the modules under `@use_experts_implementation`: `moela.nn.run_experts`.
        router: what chooses experts: `moela.moe_topk`, for routers that give the same experts on a trial.
        linear: FP8Linear with blocks of 128 x 128: `moela.nn.run_fp8_linear`.
        mla: latent attention: `moela.mla_decode` for tokens behind a cache, which stay latents, for layers
            that give the same on a trial. First tokens, training and masks of another kind than yes or no run
            as the layer does it itself. transformers caches latents from 5.16 on.
        backend: "cpu", "triton", "cuda" or "reference", in force within these layers as by
            `moela.use_backend`, so not under torch.compile; backward picks for itself. None: each layer's
            device decides.

    Returns:
        The report that was printed.

    Raises ValueError, with the model as it was, if there is nothing to patch or a layer's device cannot run
    `backend`; ImportError without transformers 5.4 or later.
    """
    kinds = {"experts": experts, "router": router, "linear": linear, "mla": mla}
    asked = [kind for kind, is_asked in kinds.items() if is_asked]
    return _load("patch", "moela.patch").patch(model, asked, backend)


def unpatch(model: nn.Module) -> None:
    """Undo every `moela.patch` of a model exactly: each layer's forward is what it was before.

    Raises ValueError if the model is not patched; ImportError without transformers 5.4 or later.
    """
    _load("patch", "moela.unpatch").unpatch(model)


def enable_cpu_fp8() -> None:
    """Let transformers keep FP8 checkpoints FP8 on CPUs, and on GPUs whose tensor cores do not multiply FP8.

    From here on `from_pretrained` of a checkpoint with quant_method "fp8", the layout of DeepSeek-V3's (e4m3
    weights of any size, one scale factor per 128 x 128 block or per tensor), loads its weights as they are
    and runs them through `moela.fp8_gemm` and `moela.fused_experts`. Transformers itself dequantizes there,
    and fails for sizes that are no multiple of 128. On Linux weights stay memory-mapped, those of experts
    too: their pages are read when they are first used, and loading takes no memory for them. Only of a layer
    whose experts lie in several files a part is read into memory.

    - Scale factors are float32, bfloat16, float8_e8m0fnu or uint8 exponents, called `weight_scale_inv`,
      `weight_scale`, `scale` or `qscale_weight`. They keep their dtype, and `save_pretrained` writes the
      tensors of the checkpoint again, bit by bit (before transformers 5.22 always as `weight_scale_inv`).
    - Activations stay in the model's dtype: a product's error is that of `moela.fp8_gemm`.
    - A checkpoint is checked before it is loaded: a scale factor that is missing, has another shape or dtype
      or is not a positive number, and a file that is cut off, is a ValueError that names file and tensor.
    - A model that is not quantized yet, with `quantization_config=FineGrainedFP8Config()`, is quantized while
      it is loaded, on the CPU too.

    `quantization_config=FineGrainedFP8Config(dequantize=True)`, GPUs of compute capability 8.9 and later, and
    every other quant_method go the way that they go without moela. Calling it again changes nothing; models
    that were loaded stay as they are when `disable_cpu_fp8` is called.

    Raises:
        ImportError: transformers 5.4 or later is not installed.

    Source: quantizers/quantizer_finegrained_fp8.py of transformers 5.24.0.
    """
    _load("fp8_loading", "moela.enable_cpu_fp8").enable()


def disable_cpu_fp8() -> None:
    """Undo `enable_cpu_fp8`: what is loaded from here on goes transformers' own way.

    It does nothing if nothing was enabled. If someone else has replaced the quantizer since, theirs is left
    in place, with a warning.
    """
    _load("fp8_loading", "moela.disable_cpu_fp8").disable()


def _load(name: str, caller: str) -> ModuleType:
    """A module of moela.integrations.transformers, if there is a transformers that it can work with."""
    oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
    todo = f"needs transformers {oldest} or later; pip install 'transformers>={oldest}'"
    try:
        found = importlib.import_module("transformers").__version__
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(f"{caller}: transformers is not installed: {todo}") from None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST_TRANSFORMERS:
        raise ImportError(f"{caller}: transformers {found} is too old: {todo}")
    return importlib.import_module(f"moela.integrations.transformers.{name}")
