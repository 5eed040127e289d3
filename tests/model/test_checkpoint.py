"""Model folders: every layout that diffusers writes, and refusals that name the file and the way out."""

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.model import VQModel, weights_hash

WEIGHTS = "diffusion_pytorch_model.safetensors"
Damage = Callable[[Path], object]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)


def test_round_trip(tiny: VQModel, tiny_folder: Path) -> None:
    loaded = VQModel.from_pretrained(tiny_folder)
    assert loaded.config == tiny.config
    assert not loaded.training
    assert weights_hash(loaded) == weights_hash(tiny)
    assert sorted(entry.name for entry in tiny_folder.iterdir()) == ["config.json", WEIGHTS]


@pytest.mark.parametrize(
    "layout",
    [{"max_shard_size": "8KB"}, {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "8KB"}],
    ids=["sharded", "variant", "sharded variant"],
)
def test_other_layouts_of_diffusers(layout: dict[str, str], tiny: VQModel, tiny_folder: Path, tmp_path: Path) -> None:
    diffusers.VQModel.from_pretrained(tiny_folder).save_pretrained(tmp_path / "other", **layout)
    files = list((tmp_path / "other").glob("*.safetensors"))
    assert (len(files) > 1) == ("max_shard_size" in layout)
    assert not (tmp_path / "other" / WEIGHTS).exists()
    assert weights_hash(VQModel.from_pretrained(tmp_path / "other")) == weights_hash(tiny)


def test_plain_file_wins_over_its_variant(tiny: VQModel, tiny_folder: Path) -> None:
    (tiny_folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    assert weights_hash(VQModel.from_pretrained(tiny_folder)) == weights_hash(tiny)


def test_half_precision_file_loads_as_float32(tiny: VQModel, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path, dtype=torch.float16)
    loaded = VQModel.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert weights_hash(loaded) == weights_hash(load_file(tmp_path / WEIGHTS))
    assert weights_hash(loaded) != weights_hash(tiny)
    assert loaded.encode_indices(torch.zeros(1, 3, 16, 16)).shape == (1, 8, 8)


def test_hash_ignores_layout_and_sees_names_shapes_and_values(tiny: VQModel) -> None:
    weights = tiny.state_dict()
    expected = weights_hash(tiny)
    last = VQModel(tiny.config)
    last.load_state_dict(weights)
    assert weights_hash(last.to(memory_format=torch.channels_last)) == expected
    assert weights_hash(dict(reversed(weights.items()))) == expected
    name = "quant_conv.bias"
    changed = [weights[name] + 1e-6, weights[name][:, None]]
    others = [{**weights, name: value} for value in changed] + [{**weights, "other": weights[name]}]
    assert len({expected, *map(weights_hash, others)}) == 4


def test_old_attention_names(tiny: VQModel, tiny_folder: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".attentions." in name and "group_norm" not in name]:
            path, _, kind = name.rpartition(".")
            new = next(new for new in old if path.endswith(new))
            weights[f"{path.removesuffix(new)}{old[new]}.{kind}"] = weights.pop(name)

    rewrite(tiny_folder, rename)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in load_file(tiny_folder / WEIGHTS)
    assert weights_hash(VQModel.from_pretrained(tiny_folder)) == weights_hash(tiny)


def _shard_elsewhere(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')


def _two_variants(folder: Path) -> None:
    for variant in ("fp16", "ema"):
        (folder / f"diffusion_pytorch_model.{variant}.safetensors").write_bytes(b"")
    (folder / WEIGHTS).unlink()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
    "config is no object": (lambda f: (f / "config.json").write_text("[]"), r"must hold a JSON object, got list"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), r"config\.json: cannot be read"),
    "config of another class": (
        lambda f: (f / "config.json").write_text('{"_class_name": "AutoencoderKL"}'),
        r"config\.json: _class_name must be 'VQModel', got 'AutoencoderKL'",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "must hold diffusion_pytorch_model.safetensors, got config.json"),
    "pickle only": (
        lambda f: (f / WEIGHTS).rename(f / "diffusion_pytorch_model.bin"),
        r"must be safetensors, got only diffusion_pytorch_model\.bin; .* can run code.*save_pretrained",
    ),
    "truncated weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-10]),
        r"diffusion_pytorch_model\.safetensors: the weights cannot be read",
    ),
    "two variants": (_two_variants, r"one variant of it, got .*ema\.safetensors, .*fp16\.safetensors"),
    "shard outside the folder": (_shard_elsewhere, r"files of its own folder, got '\.\./outside\.safetensors'"),
    "missing shard": (
        lambda f: (
            (f / WEIGHTS).rename(f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
        ),
        r"x\.safetensors: the weights cannot be read",
    ),
    "empty index": (
        lambda f: (f / WEIGHTS).rename(f / f"{WEIGHTS}.index.json").write_text("{}"),
        r"weight_map must be an object .* got None",
    ),
    "missing tensor": (lambda f: rewrite(f, lambda w: w.pop("quant_conv.bias")), r"missing: quant_conv\.bias"),
    "unexpected tensor": (lambda f: rewrite(f, lambda w: w.update(a=torch.zeros(1))), r"unexpected: a$"),
    "mis-shaped tensor": (
        lambda f: rewrite(f, lambda w: w.update({"quant_conv.bias": torch.zeros(5)})),
        r"mis-shaped: quant_conv\.bias \(must be \[4\], got \[5\]\)",
    ),
    "not a number": (
        lambda f: rewrite(f, lambda w: w["quant_conv.bias"].fill_(float("nan"))),
        r"not finite: quant_conv\.bias",
    ),
    "another geometry": (
        lambda f: (f / "config.json").write_text(
            json.dumps({**json.loads((f / "config.json").read_text()), "layers_per_block": 2})
        ),
        r"tiny: the weights do not fit config\.json; missing: .* and \d+ more",
    ),
}


@pytest.mark.parametrize("case", list(DAMAGES))
def test_damaged_folder(case: str, tiny_folder: Path) -> None:
    damage, message = DAMAGES[case]
    damage(tiny_folder)
    with pytest.raises(ModelError, match=message):
        VQModel.from_pretrained(tiny_folder)


def test_subfolder_and_file_url(tiny: VQModel, tiny_folder: Path) -> None:
    for source in (tiny_folder.parent, str(tiny_folder.parent), f"file://{tiny_folder.parent}/"):
        assert weights_hash(VQModel.from_pretrained(source, subfolder="tiny")) == weights_hash(tiny)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no-such-folder", {}, "got no-such-folder, which has no such folder"),
        ("/no/such/folder", {"subfolder": "vqvae"}, "got /no/such/folder with subfolder vqvae, which"),
        ("file:///no/such/folder", {}, "which has no such folder"),
        (".", {"revision": "main"}, "revision must be unset unless the model is a Hub id, got 'main'"),
    ],
)
def test_source_that_is_no_model(source: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        VQModel.from_pretrained(source, **options)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_id_from_the_cache(tiny: VQModel, hub_cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub_cache / "models--owner--name"
    tiny.save_pretrained(repository / "snapshots" / commit / "vqvae")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert weights_hash(VQModel.from_pretrained("owner/name", subfolder="vqvae")) == weights_hash(tiny)
    assert weights_hash(VQModel.from_pretrained("owner/name", "vqvae", revision=commit)) == weights_hash(tiny)


@pytest.mark.usefixtures("hub_cache")
def test_hub_id_out_of_reach() -> None:
    with pytest.raises(ModelError, match=r"owner/other is neither a local folder .* \(revision v1\)"):
        VQModel.from_pretrained("owner/other", revision="v1")
