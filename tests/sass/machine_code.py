"""Opcodes, registers and stack of compiled kernels, from what Triton brings along; no toolkit, no GPU."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# "/*0080*/   @!P0 LDG.E R4, ..." -> LDG.E; "@p bra.uni L" -> bra.uni; "v_mfma_f32_... a[0:3]" ->
# v_mfma_f32_...
_SASS = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[\w:]+)*)", re.M)
_ASM = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][a-z0-9_]*(?:[.:][\w:]+)*)", re.M)


def bundled(tool: str) -> Path | None:
    """A CUDA tool that Triton's wheel brings along."""
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__path__[0]) / "bin" / tool
    return path if path.exists() else None


def opcodes_of_sass(listing: str) -> Counter[str]:
    return Counter(_SASS.findall(listing))


def innermost_loops(listing: str) -> list[str]:
    """The parts of `nvdisasm -c` between a label and the last branch back to it, with no such part inside."""
    places = {m[1]: m.end() for m in re.finditer(r"^(\.L_\w+):", listing, re.M)}
    branches = re.finditer(r"\bBRA\b[^;]*`\((\.L_\w+)\)", listing)
    loops = [(places[m[1]], m.end()) for m in branches if places.get(m[1], m.end()) < m.start()]
    inner = [x for x in loops if not any(y != x and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    return [listing[begin:end] for begin, end in inner]


def stack_opcodes(opcodes: Iterable[str]) -> set[str]:
    return {opcode for opcode in opcodes if re.match(r"(LD|ST)L\b|scratch_", opcode)}


def tensor_core_opcodes(opcodes: Iterable[str]) -> set[str]:
    """HMMA, QMMA, QGMMA, UTCQMMA ... and v_mfma_... (HFMA2.MMA is a move)."""
    return {opcode for opcode in opcodes if re.match(r"[A-Z]+MMA\b|v_mfma_", opcode)}


def float64_opcodes(opcodes: Iterable[str]) -> set[str]:
    pattern = r"D(ADD|MUL|FMA|SETP|MNMX|MMA)\b|.*\.F64\b|v_.*_f64"
    return {opcode for opcode in opcodes if re.match(pattern, opcode)}


def fp8_opcodes(opcodes: Iterable[str]) -> set[str]:
    """What multiplies or converts e4m3 or e5m2 in hardware."""
    return {opcode for opcode in opcodes if re.search(r"E4M3|E5M2|QMMA|QGMMA|fp8|bf8|f8f6f4", opcode)}


def opcodes_of_assembly(listing: str) -> Counter[str]:
    """PTX or amdgcn."""
    return Counter(_ASM.findall(listing))


def of_cubin(cubin: bytes, ptx: str) -> dict[str, Any]:
    """Opcodes of SASS, of its innermost loops and of PTX; what a missing tool would tell is left out."""
    sass, usage = None, {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        if nvdisasm := bundled("nvdisasm"):
            done = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True)
            sass = opcodes_of_sass(done.stdout)
            usage["in_loops"] = opcodes_of_sass("\n".join(innermost_loops(done.stdout)))
        if cuobjdump := bundled("cuobjdump"):
            command = [cuobjdump, "--dump-resource-usage", file.name]
            usage |= resource_usage(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout
            )
    return {"sass": sass, "ptx": opcodes_of_assembly(ptx), **usage}


def resource_usage(text: str) -> dict[str, int]:
    """Of `cuobjdump --dump-resource-usage`. Triton's n_spills is stack bytes / 4."""
    return {
        "registers": int(re.search(r"REG:(\d+)", text)[1]),
        "stack": int(re.search(r"STACK:(\d+)", text)[1]),
    }


def of_amdgcn(text: str) -> dict[str, Any]:
    """Spilled vector registers are stack; spilled scalar ones are kept in vector registers."""
    keys = {"registers": "vgpr_count", "stack": "private_segment_fixed_size"}
    usage = {name: int(re.search(rf"\.{key}:\s*(\d+)", text)[1]) for name, key in keys.items()}
    return {"amdgcn": opcodes_of_assembly(text), **usage}
