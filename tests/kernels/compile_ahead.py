"""Compile every kernel for the compute capabilities given, at a real size; print what came out as JSON.

python -m tests.kernels.compile_ahead 80 90
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.kernels import group_norm, nearest

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = ("codes", "half_norms", "means", "squares", "weight", "bias", "scale", "shift")
TYPES = {
    "eps": "fp32",
    "vectors": "*fp16",
    "x": "*fp16",
    "y": "*fp16",
    "indices": "*i64",
    **dict.fromkeys(FLOATS, "*fp32"),
}
SEARCH = {"rows": nearest.ROWS, "columns": nearest.CODES, "unroll": nearest.UNROLL}
NORM = {"block": group_norm.PIXELS, "tile": group_norm.TILE_ELEMENTS // 512, "lanes": 512}


def kernels() -> Iterator[tuple[str, Any, dict[str, Any], int]]:
    """Name, kernel, constants and warps: the geometries of vq-f4 (3-dimensional codes) and of f16 (256)."""
    for dims in (3, 256):
        yield f"nearest-{dims}", nearest.nearest_kernel, {"dims": dims, **SEARCH}, nearest.WARPS
    yield "moments", group_norm.moments_kernel, NORM, group_norm.WARPS
    yield "apply", group_norm.apply_kernel, {"silu": True, **NORM}, group_norm.WARPS


def compile_for(capability: int, kernel: Any, constants: dict[str, Any], warps: int) -> dict[str, int]:
    """Bytes of stack (spilled registers), and counts of the matrix and multiply-add instructions."""
    types = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    (stack,) = re.findall(r"STACK:(\d+)", usage.stdout)
    ptx = made.asm["ptx"]
    return {
        "stack": int(stack),
        "matrix": len(re.findall(r"\bw?g?mma\b|tcgen05", ptx)),
        "fma": len(re.findall(r"\bfma\.rn\.f32", ptx)),
    }


def main(capabilities: list[int]) -> None:
    """Compile for each of the compute capabilities."""
    found = {
        f"{name} sm_{capability}": compile_for(capability, kernel, constants, warps)
        for capability in capabilities
        for name, kernel, constants, warps in kernels()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(capability) for capability in sys.argv[1:]])
