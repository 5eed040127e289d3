"""One step of training, and what it leaves: gradients, moving averages, the sums of the next report."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from pipeline.fit.codebook import OnlineCodebook
from pipeline.fit.config import FitConfig
from pipeline.fit.team import Team
from pipeline.model import VQModel
from pipeline.model.perceptual import PerceptualDistance
from pipeline.training.rate import learning_rate
from pipeline.training.state import below

_KMEANS_VECTORS_PER_CODE = 16
_SIGNAL_POWER = 4.0  # peak-to-peak squared of images in [-1, 1]


@dataclass(frozen=True, slots=True)
class FitReport:
    """Means over the steps since the last report.

    Attributes:
        step: steps done.
        loss: the whole training loss.
        psnr: of the training crops (dB, peak 255).
        usage: codes used at least once, in [0, 1]; 0 before quantization begins.
        perplexity: exp of the entropy of the codes' frequencies, in [1, codes]; 0 before quantization begins.
        held_out_psnr: mean over the held-out images (dB, peak 255); None if not measured at this step.
        held_out_usage: codes used at least once on the held-out images, in [0, 1]; likewise.
    """

    step: int
    loss: float
    psnr: float
    usage: float
    perplexity: float
    held_out_psnr: float | None = None
    held_out_usage: float | None = None


class Trainer:
    """One model under training, and the sums of the next report."""

    def __init__(self, model: VQModel, config: FitConfig, team: Team) -> None:
        self.model = model
        self.config = config
        self.codebook = OnlineCodebook(model, config, team)
        self._team = team
        self._device = model.device
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        codes = model.quantize.embedding.weight
        groups: list[dict[str, Any]] = [{"params": [p for p in self._parameters if p is not codes]}]
        if codes.requires_grad:
            groups.append({"params": [codes], "weight_decay": 0.0})  # decay would pull the codes off the latents
        self._optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._perceptual = PerceptualDistance(config.perceptual_file) if config.perceptual_file else None
        if self._perceptual:
            self._perceptual.to(self._device)
        self._early_vectors: list[Tensor] = []
        self._reset()

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._errors: list[float] = []
        self._histogram = torch.zeros(self.config.model.num_vq_embeddings)

    def step(self, step: int, images: Tensor) -> None:
        """One optimizer step on this worker's `images` [B, 3, side, side]."""
        config = self.config
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        images = images.to(self._device)
        with self._autocast():
            latents = self.model.encode(images)[0].float()
        quantized, codebook_loss = self._quantize(step, latents)
        with self._autocast():
            reconstruction = self.model.decode(quantized, force_not_quantize=True)[0].float()
        squared_error = mse_loss(reconstruction, images)
        loss = config.l1_weight * l1_loss(reconstruction, images) + config.l2_weight * squared_error
        loss = loss + codebook_loss
        if self._perceptual:
            with self._autocast():
                loss = loss + config.perceptual_weight * self._perceptual(reconstruction, images).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._team.average_gradients(self._parameters)
        torch.nn.utils.clip_grad_norm_(self._parameters, config.gradient_clip)
        self._optimizer.step()
        loss_mean, error_mean = self._team.mean(torch.stack([loss.detach(), squared_error.detach()])).tolist()
        self._losses.append(loss_mean)
        self._errors.append(error_mean)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _quantize(self, step: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's input, straight through to `latents` [B, D, h, w], and the weighted loss of the quantizer."""
        config = self.config
        vectors = latents.detach().permute(0, 2, 3, 1).reshape(-1, config.model.embed_dim)
        if step < config.continuous_steps:
            self._remember(self._team.gather(vectors))
            return latents, torch.zeros((), device=latents.device)
        if step == config.continuous_steps:
            self.codebook.initialise(torch.cat([*self._early_vectors, self._team.gather(vectors)]))
            self._early_vectors.clear()
        indices = self.model.quantize.indices(latents)
        codes = self.model.quantize.lookup(indices)
        self._histogram += self.codebook.update(vectors, indices.flatten()).cpu()
        if step % config.restart_interval == 0 and step < config.final_start:
            self._restart(vectors, codes.detach().permute(0, 2, 3, 1).reshape(vectors.shape))
        loss = config.commitment * mse_loss(latents, codes.detach())
        if config.codebook == "gradient":
            loss = loss + mse_loss(codes, latents.detach())
        return latents + (codes - latents).detach(), loss

    def _remember(self, vectors: Tensor) -> None:
        """Keeps the latest latents, enough for k-means."""
        self._early_vectors.append(vectors)
        wanted = _KMEANS_VECTORS_PER_CODE * self.config.model.num_vq_embeddings
        while sum(map(len, self._early_vectors)) - len(self._early_vectors[0]) >= wanted:
            self._early_vectors.pop(0)

    def _restart(self, vectors: Tensor, chosen: Tensor) -> None:
        """Restarts dead codes; a restarted code has no momentum."""
        restarted = self.codebook.restart_dead(self._team.gather(vectors), self._team.gather(chosen))
        for name, moment in self._optimizer.state.get(self.model.quantize.embedding.weight, {}).items():
            if name != "step":
                moment[restarted] = 0.0

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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides the next steps, as tensors by name and as JSON; the same on every worker."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self._named_parameters():
            moments = self._optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{moment}": moments[moment] for moment in moments}
        tensors |= {f"codebook.{name}": tensor for name, tensor in self.codebook.state().items()}
        tensors["histogram"] = self._histogram
        if self._early_vectors:
            tensors["early_vectors"] = torch.cat(self._early_vectors)
        lengths = [len(vectors) for vectors in self._early_vectors]
        return tensors, {"losses": self._losses, "errors": self._errors, "early_vectors": lengths}

    def restore(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self.model.load_state_dict(below("model.", tensors))
        for name, parameter in self._named_parameters():
            moments = below(f"optimizer.{name}.", tensors)
            # In the parameter's memory format, as before, so that the same kernels run.
            self._optimizer.state[parameter] = {
                k: v if k == "step" else torch.empty_like(parameter).copy_(v) for k, v in moments.items()
            }
        self.codebook.restore(below("codebook.", tensors))
        self._histogram = tensors["histogram"]
        self._losses, self._errors = list(document["losses"]), list(document["errors"])
        if document["early_vectors"]:
            early = tensors["early_vectors"].to(self._device)
            self._early_vectors = list(torch.split(early, document["early_vectors"]))

    def _named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
