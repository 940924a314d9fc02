"""What the tests of the CUDA mla_sparse share: one launch on the host."""

from dataclasses import dataclass
from pathlib import Path

import gemm
import native
import torch
from torch import Tensor

TYPES = {torch.bfloat16: 0, torch.float16: 1}


@dataclass
class Run:
    """One launch of mla_sparse and, with pieces, of the merge."""

    folder: Path
    pieces: int = 1  # 0: the plan's choice
    num_sms: int = 3
    schedule: str = "lazy"  # of the threads
    program: Path | None = None  # with a planted fault

    def __call__(self, x: dict) -> tuple[Tensor, Tensor]:
        q, cache, indices = x["q"], x["cache"], x["indices"]
        (T, H, D), v_dim, topk = q.shape, x["v_dim"], indices.size(-1)
        lengths, sinks = x["topk_length"], x["attn_sink"]
        for name in ("q", "cache", "indices", "topk_length", "attn_sink"):
            (self.folder / name).unlink(missing_ok=True)
            if x[name] is not None:
                gemm.write(self.folder / name, x[name] if x[name]._base is None else x[name]._base)
        args = (TYPES[q.dtype], int(cache.dtype == torch.uint8), T, H, D, v_dim, topk, *q.stride()[:2])
        args = (*args, *cache.shape[:2], *cache.stride()[:2], indices.stride(0))
        args = (*args, 0 if lengths is None else lengths.stride(0), 0 if sinks is None else sinks.stride(0))
        args = (*args, x["sm_scale"], self.pieces, self.num_sms, self.schedule, self.folder)
        program = self.program or native.program("tests/emu/mla_sparse.cpp")
        self.plan, verdict = native.run(program, *map(str, args)).split("\n", 1)
        assert verdict == "right", verdict
        out = gemm.read(self.folder / "out", q.dtype, T, H, v_dim)
        return out, gemm.read(self.folder / "lse", torch.float32, T, H)
