"""The parameters of a VQModel: diffusers' names and defaults, and refusals that say what is wrong."""

import inspect
from typing import Any

import diffusers
import pytest

from pipeline.model import VQModelConfig
from pipeline.model.config import parse_config


def test_names_and_defaults_are_those_of_diffusers() -> None:
    parameters = inspect.signature(diffusers.VQModel.__init__).parameters.values()
    expected = {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}
    assert VQModelConfig().model_dump() == expected


def test_bookkeeping_of_diffusers_is_ignored() -> None:
    document = {"_class_name": "VQModel", "_diffusers_version": "0.42.1", "_name_or_path": "x", "latent_channels": 4}
    assert parse_config(document) == VQModelConfig(latent_channels=4)


def test_lists_of_json_and_upper_case_activation() -> None:
    config = parse_config(
        {
            "block_out_channels": [32, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "act_fn": "SiLU",
        }
    )
    assert (config.block_out_channels, config.act_fn, config.downsample) == ((32, 64), "silu", 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name must be 'VQModel', got 'AutoencoderKL'"),
        ({"latent_chanels": 4, "beta": 1}, "got unknown beta, latent_chanels"),
        ({"in_channels": 0}, "in_channels must be greater than or equal to 1, got 0"),
        ({"num_vq_embeddings": "many"}, "num_vq_embeddings must be a valid integer.*got 'many'"),
        ({"act_fn": "tanh"}, "act_fn must be 'silu'.*got 'tanh'"),
        ({"norm_type": "batch"}, "norm_type must be 'group' or 'spatial', got 'batch'"),
        ({"down_block_types": ["CrossAttnDownBlock2D"]}, "down_block_types.0 must be 'DownEncoderBlock2D'"),
        ({"block_out_channels": []}, "block_out_channels .*at least 1 item.*got \\[\\]"),
        ({"block_out_channels": [64, 64]}, "down_block_types must have one entry per level .* \\(2\\)"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "up_block_types must have one entry per level .* \\(1\\)"),
        ({"block_out_channels": [48]}, "multiples of norm_num_groups \\(32\\), got \\(48,\\)"),
        ({"norm_num_groups": 16, "block_out_channels": [48], "norm_type": "spatial"}, "multiples of 32 with norm_type"),
        ({"norm_type": "spatial", "vq_embed_dim": 4}, "vq_embed_dim must equal latent_channels \\(3\\).*got 4"),
    ],
)
def test_invalid_document(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(parameters)
