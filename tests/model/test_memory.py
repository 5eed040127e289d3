"""How much memory the encoder and the decoder need at a time."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.model import VQModel

SIDE, WIDTH = 64, 32
LARGEST = 4 * WIDTH * SIDE * SIDE  # bytes of an activation at full resolution
MODEL = {"block_out_channels": (WIDTH, WIDTH), "layers_per_block": 2, "norm_num_groups": 8, "latent_channels": 4}
LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


class Live(TorchDispatchMode):
    """Watches the tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_no_more_than_three_large_activations_live_at_a_time(half: str) -> None:
    model = VQModel(**MODEL, **LEVELS).eval()
    images = torch.zeros(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        latents = model.encoder(images)
        with Live() as live:
            model.encoder(images) if half == "encoder" else model.decoder(latents)
    assert 2 * LARGEST < live.peak < 3.3 * LARGEST, "what goes in, its norm, and what comes out"
