"""Stand-ins on which another library's code is tried out: its classes and attributes with other tensors."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Stub(nn.Module):
    """A module that is one function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs) -> Tensor:
        return self.function(*args, **kwargs)


def twin_of(
    module: nn.Module,
    tensor: Callable[[str, Tensor], Tensor],
    child: Callable[[str], nn.Module | None] = lambda name: None,
    prefix: str = "",
) -> nn.Module:
    """A module of the same class with the same attributes, in eval mode and without hooks.

    tensor(name, t) is in the place of its parameter or buffer t; child(name) in that of a child, None: the
    child's twin. Names are those of the state dict. `module` is only read.
    """
    twin = copy.copy(module)  # a dict of its own, its values shared
    twin.__dict__.pop("forward", None)  # what was patched in: the class is what counts
    twin.__dict__["training"] = False
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        twin.__dict__[kind] = type(module.__dict__[kind])()
    for kind in ("_parameters", "_buffers"):
        new = {n: None if t is None else tensor(prefix + n, t) for n, t in module.__dict__[kind].items()}
        if kind == "_parameters":
            new = {n: None if t is None else nn.Parameter(t, requires_grad=False) for n, t in new.items()}
        twin.__dict__[kind] = new
    children = {}
    for name, old in module._modules.items():
        new = None if old is None else child(prefix + name)
        if old is not None and new is None:
            new = twin_of(old, tensor, child, f"{prefix}{name}.")
        children[name] = new
    twin.__dict__["_modules"] = children
    return twin


def tried_out(function: Callable[[], object]) -> object:
    """What another library's code returns, or the exception that it raises; nothing outside is changed."""
    try:
        with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return function()
    except Exception as error:  # not ours: any of them says that the code did not take what it was given
        return error
