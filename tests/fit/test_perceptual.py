"""The perceptual term of the loss, on random weights in the layout of torchvision's VGG16."""

from pathlib import Path

from pipeline.fit import fit
from pipeline.model import weights_hash
from tests.fit.cases import QUICK, photographs, tiny_config
from tests.support.networks import save_weights, vgg16_weights


def test_term_changes_the_training(tmp_path: Path) -> None:
    file = save_weights(tmp_path / "vgg16.safetensors", {**vgg16_weights()})
    short = {**QUICK, "steps": 3, "continuous_steps": 1, "batch_size": 2}
    plain = fit(photographs(), tiny_config(**short))
    unweighted = fit(photographs(), tiny_config(**short, perceptual_file=file, perceptual_weight=0))
    weighted = fit(photographs(), tiny_config(**short, perceptual_file=file))
    assert weights_hash(plain) == weights_hash(unweighted) != weights_hash(weighted)
