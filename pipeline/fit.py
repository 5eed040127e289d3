"""Train a small VQ model on photographs: plain VQ-VAE (van den Oord et al. 2017, 1711.00937), no discriminator.

* The encoder and decoder learn by AdamW on L1 + L2 + commitment, straight through the quantizer.
* The codebook learns without gradients: k-means on the latents of an autoencoder trained for a few hundred steps, then
  moving averages of the vectors that each code attracts (appendix A.1), and restarts of codes that attract none.
* Crops are small, as they would be cut from images of a few hundred pixels; the last steps use larger ones, so that
  the model sees less border.

Same images in the same order, same configuration, same kind of machine and thread count: same weights.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from pipeline.errors import UsageError
from pipeline.model import VQModel, VQModelConfig, normalise
from pipeline.model.blocks import ResnetBlock
from pipeline.model.quantizer import nearest_codes

UINT8 = npt.NDArray[np.uint8]

# Groups of one channel would make the norms forget each crop's brightness, so there are 8, not the default 32.
DEMO_GEOMETRY = VQModelConfig(
    block_out_channels=(32, 64, 64, 128),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=16,
    num_vq_embeddings=1024,
    norm_num_groups=8,
    mid_block_add_attention=False,
    sample_size=256,
)

# A code is dead when it attracts less than this part of an equal share of the vectors.
_DEAD_SHARE = 0.1
_KMEANS_ROUNDS = 10
_KMEANS_VECTORS_PER_CODE = 16
_SIGNAL_POWER = 4.0  # peak-to-peak squared of images in [-1, 1]


class FitConfig(BaseModel):
    """How a model is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: VQModelConfig = Field(DEMO_GEOMETRY, description="geometry of the model")
    steps: int = Field(3000, ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="crops per step; fewer of the final, larger crops: as many pixels")
    crop: int = Field(64, ge=8, description="side of the training crops (pixels)")
    final_crop: int = Field(128, ge=8, description="side of the crops of the last steps (pixels)")
    final_fraction: float = Field(0.15, ge=0, le=1, description="part of the steps that use the final crop")
    min_short_side: int = Field(256, ge=8, description="crops are cut from images scaled to at least this (pixels)")
    max_short_side: int = Field(400, ge=8, description="... and at most this short side (pixels)")
    color_jitter: float = Field(0.1, ge=0, lt=1, description="largest random change of the colour matrix; 0: none")
    pool_images: int = Field(1024, ge=1, description="images kept in memory; the rest is not used")
    learning_rate: float = Field(1e-3, gt=0, description="peak; warmed up linearly, then cosine to zero")
    warmup_steps: int = Field(100, ge=0, description="steps of the linear warm-up")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    l1_weight: float = Field(1.0, ge=0, description="weight of the mean absolute error, images in [-1, 1]")
    l2_weight: float = Field(5.0, ge=0, description="weight of the mean squared error")
    commitment: float = Field(0.25, ge=0, description="weight of the latents' squared distance to their codes")
    continuous_steps: int = Field(200, ge=0, description="first steps, without quantization")
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="of the codes' moving averages, per step")
    restart_interval: int = Field(25, ge=1, description="steps between restarts of dead codes; none with final crops")
    report_interval: int = Field(50, ge=1, description="steps between reports")
    seed: int = Field(0, ge=0, description="of weights, crops and codebook")
    device: str = Field("cpu", description="torch device")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for name in ("crop", "final_crop"):
            side = getattr(self, name)
            if side % self.model.downsample or side > self.min_short_side:
                raise ValueError(
                    f"{name} must be a multiple of the model's downsampling ({self.model.downsample}) and at most "
                    f"min_short_side ({self.min_short_side}), got {side}"
                )
        if self.max_short_side < self.min_short_side:
            raise ValueError(
                f"max_short_side must be at least min_short_side ({self.min_short_side}), got {self.max_short_side}"
            )
        if self.continuous_steps >= self.steps:
            raise ValueError(f"continuous_steps must be below steps ({self.steps}), got {self.continuous_steps}")
        return self

    @property
    def final_start(self) -> int:
        """The first step that uses the final crop."""
        return self.steps - round(self.steps * self.final_fraction)


@dataclass(frozen=True, slots=True)
class FitReport:
    """Means over the steps since the last report.

    Attributes:
        step: steps done.
        loss: the whole training loss.
        psnr: of the training crops (dB, peak 255).
        usage: codes used at least once, in [0, 1]; 0 before quantization begins.
        perplexity: exp of the entropy of the codes' frequencies, in [1, codes]; 0 before quantization begins.
    """

    step: int
    loss: float
    psnr: float
    usage: float
    perplexity: float


def fit(
    images: Iterable[UINT8], config: FitConfig, on_step: Callable[[FitReport, VQModel], None] | None = None
) -> VQModel:
    """Trains a VQModel.

    Args:
        images: uint8 [H, W, 3] photographs; the first `pool_images` are used.
        config: all parameters.
        on_step: called with each report and the model as it is (for a log, a checkpoint); must not change it.

    Returns:
        The trained model, in eval mode.

    Raises:
        UsageError: no image is large enough for the crops.
    """
    crops = CropSource(images, config)
    model = _fresh_model(config)
    model.to(device=config.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    trainer = _Trainer(model, config)
    for step in range(config.steps):
        trainer.step(step, crops.batch(config.final_crop if step >= config.final_start else config.crop))
        if on_step and ((step + 1) % config.report_interval == 0 or step + 1 == config.steps):
            on_step(trainer.report(step + 1), model)
    return model.eval()


def _fresh_model(config: FitConfig) -> VQModel:
    """A model that starts as a nearly linear autoencoder: every residual branch is zero, every convolution keeps scale.

    torch's own initial weights shrink the signal from layer to layer below the random residuals: 100 steps from there
    gave 14.9 dB, from here 18.7 dB.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VQModel(config.model)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
    return model


class CropSource:
    """Random crops of a pool of images: scale, position, the eight symmetries of the square, colour."""

    def __init__(self, images: Iterable[UINT8], config: FitConfig) -> None:
        self._config = config
        self._rng = np.random.default_rng(config.seed)
        self._pool: list[Image.Image] = []
        for pixels in images:
            if len(self._pool) == config.pool_images:
                break
            image = Image.fromarray(pixels)
            if min(image.size) >= max(config.crop, config.final_crop):
                self._pool.append(_shrunk(image, config.max_short_side))
        if not self._pool:
            raise UsageError(
                f"images to train on must have a short side of at least {max(config.crop, config.final_crop)} pixels, "
                "got none"
            )

    def batch(self, side: int) -> Tensor:
        """Crops float32 [B, 3, side, side] in [-1, 1]; B times side^2 is about the same for every side."""
        count = max(1, self._config.batch_size * self._config.crop**2 // side**2)
        crops = normalise(torch.from_numpy(np.stack([self._crop(side) for _ in range(count)])))
        return self._jitter(crops)

    def _crop(self, side: int) -> UINT8:
        image = self._pool[self._rng.integers(len(self._pool))]
        short = min(image.size)
        low = min(self._config.min_short_side, short)
        high = min(self._config.max_short_side, short)
        box_side = side * short / math.exp(self._rng.uniform(math.log(low), math.log(high)))
        left, top = (self._rng.uniform(0, length - box_side) for length in image.size)
        box = (left, top, left + box_side, top + box_side)
        crop: UINT8 = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
        turned = np.rot90(crop, int(self._rng.integers(4)))
        return turned[:, ::-1] if self._rng.random() < 0.5 else turned

    def _jitter(self, crops: Tensor) -> Tensor:
        """A random colour matrix near the identity, and an offset, per crop: brightness, contrast, saturation, hue."""
        if not self._config.color_jitter:
            return crops
        change = self._rng.uniform(-1, 1, (len(crops), 3, 4)).astype(np.float32) * self._config.color_jitter
        matrix = torch.from_numpy(change)
        colored = torch.einsum("bchw,bdc->bdhw", crops, torch.eye(3) + matrix[:, :, :3]) + matrix[:, :, 3:, None]
        return colored.clamp_(-1, 1)


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    """The image with at most this short side: the pool stays small, and crops need not read the full photograph."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


class _Trainer:
    """One model under training, and the sums of the next report."""

    def __init__(self, model: VQModel, config: FitConfig) -> None:
        self.model = model
        self.config = config
        self.codebook = OnlineCodebook(model, config)
        self._optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._early_vectors: list[Tensor] = []
        self._reset()

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._errors: list[float] = []
        self._histogram = torch.zeros(self.config.model.num_vq_embeddings)

    def step(self, step: int, images: Tensor) -> None:
        """One optimizer step on `images` [B, 3, side, side]."""
        config = self.config
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        images = images.to(config.device)
        latents = self.model.encode(images)[0]
        quantized, commitment = self._quantize(step, latents)
        reconstruction = self.model.decode(quantized, force_not_quantize=True)[0]
        squared_error = mse_loss(reconstruction, images)
        loss = config.l1_weight * l1_loss(reconstruction, images) + config.l2_weight * squared_error
        loss = loss + config.commitment * commitment
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self._optimizer.step()
        self._losses.append(loss.item())
        self._errors.append(squared_error.item())

    def _quantize(self, step: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's input, straight through to `latents` [B, D, h, w], and the commitment loss."""
        vectors = latents.detach().permute(0, 2, 3, 1).reshape(-1, self.config.model.embed_dim)
        if step < self.config.continuous_steps:
            self._remember(vectors)
            return latents, torch.zeros((), device=latents.device)
        if step == self.config.continuous_steps:
            self.codebook.initialise(torch.cat([*self._early_vectors, vectors]))
            self._early_vectors.clear()
        indices = self.model.quantize.indices(latents)
        codes = self.model.quantize.lookup(indices)
        self.codebook.update(vectors, indices.flatten())
        if step % self.config.restart_interval == 0 and step < self.config.final_start:
            self.codebook.restart_dead(vectors, codes.permute(0, 2, 3, 1).reshape(vectors.shape))
        self._histogram += torch.bincount(indices.flatten().cpu(), minlength=len(self._histogram))
        return latents + (codes - latents).detach(), mse_loss(latents, codes)

    def _remember(self, vectors: Tensor) -> None:
        """Keeps the latest latents, enough for k-means."""
        self._early_vectors.append(vectors)
        wanted = _KMEANS_VECTORS_PER_CODE * self.config.model.num_vq_embeddings
        while sum(map(len, self._early_vectors)) - len(self._early_vectors[0]) >= wanted:
            self._early_vectors.pop(0)

    def report(self, step: int) -> FitReport:
        """The means since the last report."""
        total = self._histogram.sum()
        frequency = self._histogram / total.clamp_min(1)
        report = FitReport(
            step=step,
            loss=float(np.mean(self._losses)),
            psnr=10 * math.log10(_SIGNAL_POWER / float(np.mean(self._errors))),
            usage=(frequency > 0).float().mean().item(),
            perplexity=torch.special.entr(frequency).sum().exp().item() if total else 0.0,
        )
        self._reset()
        return report


class OnlineCodebook:
    """The codes as moving averages of the vectors they attract (van den Oord et al. 2017, appendix A.1)."""

    def __init__(self, model: VQModel, config: FitConfig) -> None:
        self._codes = model.quantize.embedding.weight.requires_grad_(False)
        self._decay = config.codebook_decay
        self._generator = torch.Generator(self._codes.device).manual_seed(config.seed)
        self._counts = torch.ones(len(self._codes), device=self._codes.device)  # vectors per step
        self._sums = self._codes.clone()

    def initialise(self, vectors: Tensor) -> None:
        """Sets the codes by k-means (Lloyd) on `vectors` [N, D]."""
        order = torch.randperm(len(vectors), generator=self._generator, device=vectors.device)
        # Fewer vectors than codes, on a toy: some codes start equal, and are restarted.
        self._codes.copy_(vectors[order[torch.arange(len(self._codes)) % len(order)]])
        for _ in range(_KMEANS_ROUNDS):
            counts, sums = self._attracted(vectors, nearest_codes(vectors, self._codes))
            self._codes.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], self._codes))
        self._counts.fill_(1.0)
        self._sums.copy_(self._codes)

    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Moves the codes towards `vectors` [N, D] that chose them (`indices` [N])."""
        counts, sums = self._attracted(vectors, indices)
        # An equal share counts 1, whatever the batch: crops of another size change N.
        share = len(vectors) / len(self._codes)
        self._counts.lerp_(counts / share, 1 - self._decay)
        self._sums.lerp_(sums / share, 1 - self._decay)
        self._codes.copy_(self._sums / self._counts.clamp_min(1e-6)[:, None])

    def restart_dead(self, vectors: Tensor, chosen: Tensor) -> None:
        """Moves dead codes onto recent `vectors` [N, D], likelier where the `chosen` codes [N, D] are far off."""
        dead = (self._counts < _DEAD_SHARE).nonzero()[:, 0][: len(vectors)]
        if not len(dead):
            return
        errors = (vectors - chosen).square().sum(dim=1).add_(1e-12)
        picked = vectors[torch.multinomial(errors, len(dead), generator=self._generator)]
        self._codes[dead] = picked
        self._counts[dead] = 1.0
        self._sums[dead] = picked

    def _attracted(self, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(indices, minlength=len(self._codes)).to(vectors.dtype)
        return counts, torch.zeros_like(self._codes).index_add_(0, indices, vectors)


def learning_rate(step: int, config: FitConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
