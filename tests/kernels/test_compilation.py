"""The kernels compile for real devices, though none is here: Triton brings NVIDIA's assembler."""

import json
import os
import subprocess
import sys

import pytest

CAPABILITIES = [75, 80, 90, 100]  # T4, A100, H100 and H200, B200


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    """What `tests.kernels.compile_ahead` says: kernel and capability -> counts.

    In a process of its own: here the kernels are interpreted.
    """
    command = [sys.executable, "-m", "tests.kernels.compile_ahead", *map(str, CAPABILITIES)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.system
def test_kernels_compile_without_spilling_and_without_matrix_instructions(compiled: dict[str, dict[str, int]]) -> None:
    """A matrix instruction on float32 would be TF32, which flips tokens."""
    assert len(compiled) == 4 * len(CAPABILITIES)
    assert all(found["fma"] for name, found in compiled.items() if name.startswith("nearest")), "nothing was compiled"
    for name, found in compiled.items():
        assert found["matrix"] == 0, name
        assert found["stack"] <= 8, f"{name}: registers are spilled"  # bytes; sm_80 keeps a flag or two there
