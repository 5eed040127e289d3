"""The model in one precision: what is rounded, what is not, and what torch.compile is given."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.encoding import Precision
from pipeline.engine.cuda import CudaLine
from pipeline.engine.forward import HALVES, Forward, arithmetic
from pipeline.meter import Meter
from pipeline.model import VQModel
from tests.engine.test_engine import images, overflowing
from tests.support.slow_gpu import SlowGpu


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VQModel:
    return VQModel.from_pretrained(tiny_model).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", list(HALVES))
def test_last_layers_norms_and_codes_stay_in_float32(model: VQModel, precision: Precision) -> None:
    half = model.with_half_encoder(HALVES[precision])
    rounded = {name for name, value in half.named_parameters() if value.dtype is HALVES[precision]}
    layers = {name for name, module in half.encoder.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert {name.removeprefix("encoder.").rpartition(".")[0] for name in rounded} == layers - {"conv_out"}
    assert half.quantize is model.quantize
    assert all(value.dtype is torch.float32 for value in model.parameters()), "the model itself is left as it was"
    with torch.no_grad():
        assert half.encode_latents(torch.from_numpy(images(1))).dtype is torch.float32


@pytest.mark.parametrize("precision", [Precision.EXACT, *HALVES])
def test_memory_format_is_kept_through_the_encoder(model: VQModel, precision: Precision) -> None:
    seen: list[bool] = []
    part = model.with_half_encoder(HALVES[precision]) if precision in HALVES else model
    for module in part.encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    with torch.inference_mode():
        part.encode_latents(torch.from_numpy(images(2)))
    assert len(seen) > 10
    assert all(seen)


def test_images_out_of_range_are_named(model: VQModel) -> None:
    batch = torch.from_numpy(images(4))
    batch[2] = 127
    changed = overflowing(model)
    assert Forward(changed, Precision.FP16)(batch)[1].tolist() == [False, False, True, False]
    assert Forward(changed, Precision.EXACT)(batch)[1].all()


def test_encoder_is_one_graph_for_the_compiler(model: VQModel) -> None:
    part, batch = model.with_half_encoder(torch.bfloat16), torch.from_numpy(images(2))
    with torch.inference_mode():
        compiled = torch.compile(part.encode_latents, fullgraph=True, dynamic=False, backend="eager")
        assert torch.equal(compiled(batch), part.encode_latents(batch))


@pytest.fixture
def switches() -> Iterator[None]:
    saved = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = saved


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize("precision", [*Precision, *reversed(Precision)])
def test_switches_agree_under_all_their_names(precision: Precision) -> None:
    """torch raises where a switch is read by one name after another name said something else."""
    with arithmetic(torch.device("cuda"), precision):
        loose = precision is Precision.TF32
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (loose, loose)
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is loose
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is loose
        assert torch.get_float32_matmul_precision() == ("high" if loose else "highest")
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("precision", [Precision.EXACT, Precision.FP16])
def test_real_model_on_the_lines_of_a_device(model: VQModel, precision: Precision) -> None:
    """Through slots, programs and streams (a stand-in's) as through a plain call."""
    forward, batch = Forward(model, precision), images(5)
    line = CudaLine(SlowGpu(1), (32, 32, 3), (8, 8), Meter(), graphs=True)
    line.prepare(forward, (2, 8))
    found, finite = line.start(batch).result()
    padded = torch.from_numpy(np.concatenate([batch, np.zeros((3, 32, 32, 3), np.uint8)]))
    assert np.array_equal(found, forward(padded)[0][:5].numpy())
    assert finite.all()
