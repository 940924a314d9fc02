"""Opcodes, registers and stack of compiled kernels, from what Triton brings along; no toolkit, no GPU."""

import itertools
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# "/*0080*/   @!P0 LDG.E R4, ..." -> LDG.E; "@p bra.uni L" -> bra.uni; "v_mfma_f32_... a[0:3]" ->
# v_mfma_f32_...
_SASS = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[\w:]+)*)", re.M)
INSTRUCTION = 16  # bytes
_ASM = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][a-z0-9_]*(?:[.:][\w:]+)*)", re.M)


def bundled(tool: str) -> Path | None:
    """A CUDA tool that Triton's wheel brings along."""
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__path__[0]) / "bin" / tool
    return path if path.exists() else None


def opcodes_of_sass(listing: str) -> Counter[str]:
    return Counter(_SASS.findall(listing))


def innermost_loops(listing: str) -> list[str]:
    """The parts of a listing between an instruction and the last branch back to it, with none inside."""
    places = {int(m[1], 16): m.start() for m in re.finditer(r"^[ \t]*/\*([0-9a-f]+)\*/", listing, re.M)}
    branches = re.finditer(r"^[ \t]*/\*([0-9a-f]+)\*/[^;\n]*\bBRA\b[^;\n]*\b0x([0-9a-f]+)\s*;", listing, re.M)
    jumps = ((int(m[1], 16), int(m[2], 16), m.end()) for m in branches)
    loops = [(places[to], end) for at, to, end in jumps if to <= at]
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


def code_of(cubin: bytes) -> bytes:
    """The instructions of the one kernel of an ELF file."""
    sections, size, count, names = *struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<2I4Q", cubin, sections + i * size) for i in range(count)]
    name_of = lambda header: cubin[headers[names][4] + header[0] :].split(b"\0", 1)[0]  # noqa: E731
    [(*_, offset, length)] = [header for header in headers if name_of(header).startswith(b".text.")]
    return cubin[offset : offset + length]


def disassembled(codes: Iterable[bytes], target: str) -> list[str]:
    """The listing of each piece of code, of one run of nvdisasm, which takes a fifth of a second to start."""
    number = int(target.removeprefix("sm_"))
    with tempfile.NamedTemporaryFile() as file:
        ends = [file.write(code) for code in codes]
        file.flush()
        command = [bundled("nvdisasm"), "-b", f"SM{number}{'a' * (number >= 90)}", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^[ \t]*/\*[0-9a-f]+\*/.*\n", listing, re.M)
    assert len(lines) * INSTRUCTION == sum(ends), "nvdisasm left out instructions"
    places = [0, *itertools.accumulate(size // INSTRUCTION for size in ends)]
    return ["".join(lines[begin:end]) for begin, end in itertools.pairwise(places)]


def of_cubins(cubins: Iterable[bytes], target: str) -> list[dict[str, Any]]:
    """Opcodes of SASS and of its innermost loops, registers and stack of each."""
    cubins = list(cubins)
    listings = disassembled(map(code_of, cubins), target)
    return [
        {
            "sass": opcodes_of_sass(listing),
            "in_loops": opcodes_of_sass("\n".join(innermost_loops(listing))),
            **usage_of(cubin),
        }
        for cubin, listing in zip(cubins, listings, strict=True)
    ]


def usage_of(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [bundled("cuobjdump"), "--dump-resource-usage", file.name]
        return resource_usage(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


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
