"""Which family a folder is of, what is refused, and half precisions of those that are not our own layers."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.encoding import ModelConfig, Precision
from pipeline.engine.forward import Forward
from pipeline.errors import ModelError
from pipeline.fingerprint import fingerprint, identity
from pipeline.model import Tokenizer, VQModel
from pipeline.model.checkpoint import write_folder
from pipeline.tokenizers import families, load_tokenizer
from pipeline.tokenizers.convert import convert
from pipeline.tokenizers.families import class_name
from tests.support.families import FAMILIES, save_scripted

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({}, "VQModel"),
        ({"_class_name": "VQModel"}, "VQModel"),
        ({"architectures": ["JanusVQVAE"], "model_type": "janus_vqgan"}, "JanusVQVAE"),
        ({"model_type": "emu3_vqgan"}, "Emu3VQVAE"),
        ({"_class_name": "os.system", "architectures": ["JanusVQVAE"]}, "os.system"),
    ],
)
def test_class_of_a_folder(document: dict, name: str) -> None:
    assert class_name(document) == name


def configured(folder: Path, **document: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(document))
    return ModelConfig(path=str(folder))


def test_unknown_families_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"known here \(ChameleonVQVAE, .*VQModel\), got 'JanusForConditional"):
        load_tokenizer(configured(tmp_path, architectures=["JanusForConditionalGeneration"]))


def test_vq_models_are_loaded_as_before(tiny_model: Path) -> None:
    found = load_tokenizer(ModelConfig(path=str(tiny_model), value_range="0..1"))
    assert isinstance(found, VQModel)
    assert (found.value_range, found.weights_hash()) == ("0..1", VQModel.from_pretrained(tiny_model).weights_hash())


def test_transformers_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.tokenizers.transformers_vq", raising=False)
    monkeypatch.delattr("pipeline.tokenizers.transformers_vq", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"need the extra `transformers`; pip install 'tokenmill\[transformers\]'"):
        load_tokenizer(configured(tmp_path, architectures=["JanusVQVAE"]))


def test_damaged_folder_of_transformers(made_once: Made, tmp_path: Path) -> None:
    model = made_once("model of JanusVQVAE", FAMILIES["JanusVQVAE"])
    document = json.loads((model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"do not fit config\.json; mis-shaped: .*embedding\.weight"):
        load_tokenizer(configured(tmp_path, **document | {"num_embeddings": 65}))
    with pytest.raises(ModelError, match=r"describes no JanusVQVAE|cannot be loaded"):
        load_tokenizer(configured(tmp_path, **document | {"num_embeddings": "many"}))


@pytest.mark.parametrize("name", ["JanusVQVAE", "Emu3VQVAE", "magvit"])
def test_half_precisions_keep_most_tokens_and_change_no_weight(name: str, made_once: Made) -> None:
    model = load_tokenizer(
        ModelConfig(path=str(made_once(f"model of {name}", FAMILIES[name])), allow_torchscript=name == "magvit")
    )
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = model.weights_hash()
    exact, held = Forward(model, Precision.EXACT)(images)
    half, _ = Forward(model, Precision.BF16)(images)
    assert held.all()
    rounded = model.with_half_encoder(torch.bfloat16).encode_latents(images)
    assert not torch.equal(rounded, model.encode_latents(images)), "nothing was rounded"
    same = [(half >> bit & 1) == (exact >> bit & 1) for bit in range(18)] if name == "magvit" else [half == exact]
    assert torch.stack(same).float().mean() > 0.5
    assert model.weights_hash() == before
    assert torch.equal(Forward(model, Precision.EXACT)(images)[0], exact)


def test_families_of_equal_configuration_have_fingerprints_of_their_own(made_once: Made) -> None:
    """Weights and all that is configured are said to be equal, as if two codes read one checkpoint."""
    fields = {"in_channels": 3, "resolution": 32}
    told: dict[str, dict[str, object]] = {"VQModel": fields}
    for name in FAMILIES:
        config = ModelConfig(path=str(made_once(f"model of {name}", FAMILIES[name])), allow_torchscript=True)
        described = load_tokenizer(config).describe()
        told[name] = fields | {key: described[key] for key in ("family", "quantizer") if key in described}
    equal = {"weights": "w", "image": {}, "precision": "exact", "columns": {}, "select": {}}
    assert len({fingerprint(identity(model=model, **equal)) for model in told.values()}) == len(told) == 6


def test_value_range_reaches_every_family(made_once: Made) -> None:
    folder = str(made_once("model of JanusVQVAE", FAMILIES["JanusVQVAE"]))
    signed, unit = (load_tokenizer(ModelConfig(path=folder, value_range=value)) for value in ("-1..1", "0..1"))
    black = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    torch.testing.assert_close(unit.encode_latents(black), signed.to_latents(torch.zeros(1, 3, 32, 32)))
    indices = torch.zeros(1, 8, 8, dtype=torch.int64)
    torch.testing.assert_close(unit.decode_indices(indices), (signed.to_images(indices) * 2 - 1).clamp(-1, 1))


SCRIPT = {"_class_name": "TorchScriptTokenizer", "downsample": 4, "quantizer": "lfq", "bits": 18}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (SCRIPT | {"bits": 17}, r"the encoder must give \[1, 17, 4, 4\] for 16 x 16 pixels, got \[1, 18, 4, 4\]"),
        (SCRIPT | {"downsample": 8}, "cannot be run on images"),
        (SCRIPT | {"quantizer": "fsq", "levels": [2]}, "levels must be at least 3"),
        (SCRIPT | {"more": 1}, "describes no TorchScript model"),
    ],
)
def test_scripts_that_are_not_what_is_said(document: dict, says: str, tmp_path: Path) -> None:
    config = configured(save_scripted("magvit", tmp_path), **document)
    with pytest.raises(ModelError, match=says):
        load_tokenizer(config.model_copy(update={"allow_torchscript": True}))


def test_scripts_are_not_opened_without_leave_or_of_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(path=str(save_scripted("magvit", tmp_path)))
    pin = load_tokenizer(config.model_copy(update={"allow_torchscript": True})).weights_hash()
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("a program was loaded"))
    with pytest.raises(ModelError, match=r"set model\.allow_torchscript=true"):
        load_tokenizer(config)
    (tmp_path / "decoder.jit").write_bytes((tmp_path / "encoder.jit").read_bytes())
    with pytest.raises(ModelError, match=f"the files' hash must be {pin}, got .*nothing of them was run"):
        load_tokenizer(config.model_copy(update={"allow_torchscript": True, "sha256": pin}))
    (tmp_path / "decoder.jit").unlink()
    with pytest.raises(ModelError, match=r"must hold encoder\.jit and decoder\.jit"):
        load_tokenizer(config.model_copy(update={"allow_torchscript": True}))


class Nothing(Tokenizer):
    """The least that a family says."""

    codebook_size, downsample = 4, 8

    def describe(self) -> dict[str, object]:
        return {"family": "Nothing"}

    def to_latents(self, pixels: Tensor) -> Tensor:
        return pixels[:, :, ::8, ::8]

    def to_indices(self, latents: Tensor) -> Tensor:
        return latents[:, 0].long()

    def to_images(self, indices: Tensor) -> Tensor:
        raise NotImplementedError


def load_nothing(folder: Path, config: ModelConfig) -> Tokenizer:
    return Nothing(config.value_range)


def load_wrong(folder: Path, config: ModelConfig) -> object:
    return object()


def load_badly(folder: Path, config: ModelConfig) -> Tokenizer:
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([("Other", "load_nothing")], None),
        ([("Other", "load_wrong")], r"Other must give a pipeline\.model\.Tokenizer, got object"),
        ([("Other", "load_badly")], "Other cannot be loaded: KeyError: 'weights'"),
        ([("Other", "not_there")], "not_there cannot be imported: AttributeError"),
        ([("Other", "load_nothing"), ("Other", "load_wrong")], "Other must be registered once, got .*load_wrong"),
    ],
)
def test_families_from_outside(
    entries: list[tuple[str, str]], says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = EntryPoints(EntryPoint(name, f"{__name__}:{target}", families.GROUP) for name, target in entries)
    monkeypatch.setattr(families, "entry_points", lambda **_: found)
    config = configured(tmp_path, _class_name="Other")
    if says is None:
        assert load_tokenizer(config).describe() == {"family": "Nothing"}
        return
    with pytest.raises(ModelError, match=says):
        load_tokenizer(config)


def test_families_from_outside_do_not_replace_ours(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = EntryPoints([EntryPoint("VQModel", f"{__name__}:load_nothing", families.GROUP)])
    monkeypatch.setattr(families, "entry_points", lambda **_: found)
    with pytest.raises(ModelError, match=r"VQModel must be registered once, got .*load_nothing beside ours"):
        load_tokenizer(ModelConfig(path=str(tiny_model)))


@pytest.mark.parametrize("name", ["JanusVQVAE", "Emu3VQVAE"])
def test_tokenizer_is_taken_out_of_a_whole_model(name: str, made_once: Made, tmp_path: Path) -> None:
    model = made_once(f"model of {name}", FAMILIES[name])
    document = json.loads((model / "config.json").read_text())
    weights = {f"model.vqmodel.{key}": value for key, value in load_file(model / "model.safetensors").items()}
    whole = {"model_type": name.removesuffix("VQVAE").lower(), "vq_config": document}
    write_folder(tmp_path / "whole", whole, weights | {"lm_head.weight": torch.ones(2)}, "model-00001-of-00001")
    made = convert(tmp_path / "whole", tmp_path / "out")
    assert made.left_out == {"lm_head": 1}
    assert made.weights == load_tokenizer(ModelConfig(path=str(model))).weights_hash()


@pytest.mark.parametrize("keeps", [0, 4, 200])
def test_whole_model_that_is_damaged(keeps: int, tmp_path: Path) -> None:
    weights = {"model.vqmodel.weight": torch.ones(64)}
    write_folder(tmp_path / "whole", {"model_type": "emu3"}, weights, "model-00001-of-00001")
    file = tmp_path / "whole" / "model-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:keeps])
    with pytest.raises(ModelError, match=f"{file}: the weights cannot be read"):
        convert(tmp_path / "whole", tmp_path / "out")
