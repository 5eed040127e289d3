"""Checkpoints of other codes: the converted model gives the tokens and images of the code it came from."""

import argparse
import copy
import json
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from torch.nn.functional import normalize

from pipeline.errors import ModelError
from pipeline.model import VQModel
from pipeline.tokenizers.convert import Conversion, convert
from tests.security.canary import Canary
from tests.support.commands import tokenmill
from tests.support.reference_vqgans import ReferenceVqgan

DDCONFIG = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "resolution": 32}
DDCONFIG |= {"z_channels": 8, "in_channels": 3, "out_ch": 3, "dropout": 0.0, "double_z": False}
LLAMAGEN = {"ch": 32, "num_res_blocks": 1, "z_channels": 8, "codebook_size": 64, "codebook_embed_dim": 4}
LLAMAGEN |= {"encoder_ch_mult": [1, 1, 2], "decoder_ch_mult": [1, 1, 2]}


def taming_yaml(target: str = "taming.models.vqgan.VQModel", **changes: Any) -> dict[str, Any]:
    params = {"embed_dim": 4, "n_embed": 64, "ddconfig": DDCONFIG | changes, "lossconfig": {"target": "x"}}
    return {"model": {"target": target, "params": params}}


def around(document: dict[str, Any]) -> dict[str, Any]:
    """The YAML of a diffusion model on the latents."""
    return {"model": {"target": "ldm.LatentDiffusion", "params": {"first_stage_config": document["model"]}}}


CASES: dict[str, tuple[str, tuple[int, ...], bool, dict[str, Any]]] = {
    "attention at the coarsest level": ("taming", (2,), True, taming_yaml()),
    "attention at two levels": ("taming", (0, 2), True, taming_yaml(attn_resolutions=[8, 32])),
    "no attention": ("taming", (), False, taming_yaml(attn_type="none")),
    "inside a diffusion model": ("taming", (2,), True, around(taming_yaml())),
    "unit codes": ("llamagen", (2,), True, LLAMAGEN),
}


def written(folder: Path, content: object, config: object) -> tuple[Path, str]:
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "model.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "model.ckpt", str(folder / "config.yaml")


@cache
def reference(code: str, attended: tuple[int, ...] = (2,), middle: bool = True) -> ReferenceVqgan:
    torch.manual_seed(3)
    return ReferenceVqgan(code, attended, middle=middle).eval()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@torch.no_grad()
def test_tokens_and_images_are_the_original_codes(
    case: tuple[str, tuple[int, ...], bool, dict], tmp_path: Path
) -> None:
    code, attended, middle, config = case
    original = reference(code, attended, middle)
    prefix = "first_stage_model." if "first_stage" in str(config) else ""
    state = {f"{prefix}{name}": tensor for name, tensor in original.state_dict().items()}
    state |= {f"{prefix}loss.discriminator.weight": torch.ones(3)}
    state |= {"model.diffusion_model.weight": torch.ones(2)} if prefix else {}
    made = convert(*_swapped(written(tmp_path / "in", {"state_dict": state}, config), tmp_path / "out"))
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    expected = original.indices(images)
    assert len(expected.unique()) > 8
    assert torch.equal(made.tokenizer.encode_indices(images), expected)
    torch.testing.assert_close(
        made.tokenizer.decode_indices(expected), original.images(expected).clamp(-1, 1), atol=1e-5, rtol=1e-4
    )
    assert made.left_out == {"loss": 1, **({"model": 1} if prefix else {})}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def _swapped(files: tuple[Path, str], to: Path) -> tuple[Path, Path, str]:
    return files[0], to, files[1]


@torch.no_grad()
def test_unit_codes_in_diffusers_and_why_they_are_stored_so(tmp_path: Path) -> None:
    original, images = reference("llamagen"), torch.rand(4, 3, 32, 32) * 2 - 1
    convert(*_swapped(written(tmp_path / "in", {"model": original.state_dict()}, LLAMAGEN), tmp_path / "out"))
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "out").eval()
    found = theirs.quantize(theirs.encode(images).latents)[2][2]
    assert torch.equal(found.view(4, 8, 8), original.indices(images))
    plain = copy.deepcopy(original)
    plain.unit = False
    assert not torch.equal(plain.indices(images), original.indices(images)), "lengths would have mattered"
    codes = VQModel.from_pretrained(tmp_path / "out").quantize.embedding.weight
    torch.testing.assert_close(codes, normalize(original.codes, dim=-1))


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor / 2 for name, tensor in state.items()}


def dotless(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """latent-diffusion's averages."""
    shadow = {f"model_ema.{name.replace('.', '')}": tensor / 2 for name, tensor in state.items()}
    return state | shadow | {"model_ema.decay": torch.tensor(0.9999)}


@pytest.mark.parametrize(
    ("code", "asked", "taken"),
    [
        ("taming", None, True),
        ("taming", False, False),
        ("llamagen", None, False),  # as its own extraction of codes
        ("llamagen", True, True),
    ],
)
def test_moving_averages(code: str, asked: bool | None, taken: bool, tmp_path: Path) -> None:
    state = reference(code).state_dict()
    content = {"state_dict": dotless(state)} if code == "taming" else {"model": state, "ema": halved(state)}
    config = taming_yaml() if code == "taming" else LLAMAGEN
    source, to, yaml_file = _swapped(written(tmp_path / "in", content, config), tmp_path / "out")
    made = convert(source, to, yaml_file, averages=asked)
    assert made.averaged is taken
    found = made.tokenizer.get_parameter("encoder.conv_in.bias")
    torch.testing.assert_close(found.data, state["encoder.conv_in.bias"] / (2 if taken else 1))


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of a package that is not installed here."""
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks"})
    sys.modules["pytorch_lightning.callbacks"].ModelCheckpoint = callback
    return callback


def test_what_training_codes_leave_behind_is_passed_over(lightning: type, tmp_path: Path) -> None:
    state = reference("taming").state_dict()
    content = {"state_dict": state, "callbacks": {lightning: {"best": 1.0}, "object": lightning()}}
    content["args"] = argparse.Namespace(lr=1e-4)
    made: Conversion = convert(*_swapped(written(tmp_path / "in", content, taming_yaml()), tmp_path / "out"))
    assert made.tokenizer.codebook_size == 64


def test_hostile_pickle_is_refused_without_running_it(tmp_path: Path) -> None:
    mark = tmp_path / "fired"
    state = reference("taming").state_dict()
    for content in (Canary(mark), {"state_dict": state, "callbacks": Canary(mark)}):
        files = _swapped(written(tmp_path / "in", content, taming_yaml()), tmp_path / "out")
        with pytest.raises(ModelError, match=r"a pickle that would call .*Path\.touch|nothing of it was run"):
            convert(*files)
    (tmp_path / "in" / "model.ckpt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match="nothing of it was run"):
        convert(*files)
    assert not mark.exists()
    assert not list((tmp_path / "out").iterdir())


Change = Callable[[dict[str, torch.Tensor]], object]
NAN = torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("encoder.conv_in.bias"), r"missing: encoder\.conv_in\.bias"),
        (lambda state: state.update({"encoder.extra": NAN}), r"unexpected: encoder\.extra"),
        (lambda state: state.update({"quant_conv.bias": torch.ones(9)}), r"mis-shaped: quant_conv\.bias"),
        (lambda state: state.update({"quant_conv.bias": NAN.expand(4)}), r"not finite: quant_conv\.bias"),
        (lambda state: [state.pop(name) for name in list(state) if "down" in name], "must hold a VQGAN of"),
        (lambda state: state.clear(), "must hold tensors, got nothing"),
    ],
    ids=["missing", "left over", "shape", "not a number", "another model", "empty"],
)
def test_damaged_checkpoints(change: Change, says: str, tmp_path: Path) -> None:
    state = dict(reference("taming").state_dict())
    change(state)
    with pytest.raises(ModelError, match=says):
        convert(*_swapped(written(tmp_path / "in", {"state_dict": state}, taming_yaml()), tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (taming_yaml(double_z=True), r"ddconfig\.double_z"),
        (taming_yaml(attn_type="linear"), r"ddconfig\.attn_type"),
        (taming_yaml(resamp_with_conv=False), r"ddconfig\.resamp_with_conv"),
        (taming_yaml(ch_mult=[2, 2, 4]), r"ch_mult must begin with 1"),
        (taming_yaml(ch=48), "multiples of norm_num_groups"),
        (taming_yaml(window=8), r"ddconfig\.window"),
        (taming_yaml(target="taming.models.vqgan.GumbelVQ"), "target must be a VQModel .* got taming.*GumbelVQ"),
        ([1], "must be a mapping, got list"),
    ],
)
def test_geometries_that_cannot_be_expressed(config: object, says: str, tmp_path: Path) -> None:
    state = reference("taming").state_dict()
    with pytest.raises(ModelError, match=says):
        convert(*_swapped(written(tmp_path / "in", {"state_dict": state}, config), tmp_path / "out"))


def test_remapped_codes_and_a_missing_configuration(tmp_path: Path) -> None:
    config = taming_yaml()
    config["model"]["params"]["remap"] = "used.npy"
    source, to, yaml_file = _swapped(
        written(tmp_path / "in", {"state_dict": reference("taming").state_dict()}, config), tmp_path / "out"
    )
    with pytest.raises(ModelError, match="remap"):
        convert(source, to, yaml_file)
    with pytest.raises(ModelError, match="--config must tell the geometry"):
        convert(source, to)
    to.joinpath("config.json").write_text("{}")
    with pytest.raises(ModelError, match="must be a folder without a model"):
        convert(source, to, yaml_file)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\xff", "über: 1".encode("latin-1"), b"n_embed: 2026-13-01"])
def test_geometry_in_a_file_that_is_no_text_or_no_yaml(content: bytes, tmp_path: Path) -> None:
    files = _swapped(written(tmp_path / "in", {"state_dict": reference("taming").state_dict()}, {}), tmp_path / "out")
    Path(files[2]).write_bytes(content)
    with pytest.raises(ModelError, match=r"--config .*config\.yaml: cannot be read as YAML"):
        convert(*files)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ModelError, match=r"--to must be a folder, got .*out, which is a file"):
        convert(tmp_path / "in", tmp_path / "out")


@pytest.mark.system
def test_command(tmp_path: Path) -> None:
    state = reference("llamagen").state_dict()
    source, config = written(tmp_path, {"model": halved(state), "ema": state}, LLAMAGEN)
    result = tokenmill("convert", source, "--config", config, "--averages", "--to", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["weights"] == VQModel.from_pretrained(tmp_path / "out").weights_hash()
    assert found["averaged"] is True
    assert tokenmill("convert", source, "--config", "VQ-8", "--to", tmp_path / "other").returncode == 2
