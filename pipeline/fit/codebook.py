"""The codebook under training: how it starts, how it follows the latents, and what becomes of dead codes."""

import torch
from torch import Tensor

from pipeline.fit.config import FitConfig
from pipeline.fit.team import Team
from pipeline.model import VQModel
from pipeline.model.quantizer import nearest_codes

# A code is dead when it attracts less than this part of an equal share of the vectors.
_DEAD_SHARE = 0.1
_KMEANS_ROUNDS = 10


class OnlineCodebook:
    """The codes, and moving averages of the vectors they attract (van den Oord et al. 2017, appendix A.1).

    With `codebook: ema` the averages are the codes; with `gradient` they only tell which codes are dead. The vectors of
    `initialise` and `restart_dead` are those of the whole team, those of `update` this worker's own.
    """

    def __init__(self, model: VQModel, config: FitConfig, team: Team | None = None) -> None:
        by_gradient = config.codebook == "gradient"
        self._codes = model.quantize.embedding.weight.requires_grad_(by_gradient).detach()
        self._averaged = not by_gradient
        self._decay = config.codebook_decay
        self._team = team or Team()
        self._generator = torch.Generator().manual_seed(config.seed)  # on the CPU: the same on every device
        self._counts = torch.ones(len(self._codes), device=self._codes.device)  # vectors per step
        self._sums = self._codes.clone()

    def initialise(self, vectors: Tensor) -> None:
        """Sets the codes by k-means (Lloyd) on `vectors` [N, D]."""
        order = torch.randperm(len(vectors), generator=self._generator).to(vectors.device)
        # Fewer vectors than codes, on a toy: some codes start equal, and are restarted.
        self._codes.copy_(vectors[order[torch.arange(len(self._codes)) % len(order)]])
        for _ in range(_KMEANS_ROUNDS):
            counts, sums = self._attracted(vectors, nearest_codes(vectors, self._codes))
            self._codes.copy_(torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], self._codes))
        self._counts.fill_(1.0)
        self._sums.copy_(self._codes)
        self._agree()

    def update(self, vectors: Tensor, indices: Tensor) -> Tensor:
        """Moves the codes towards `vectors` [N, D] that chose them (`indices` [N]).

        Returns:
            [K], how many vectors of the whole team chose each code.
        """
        counts, sums = self._attracted(vectors, indices)
        counts, sums = self._team.sum(counts), self._team.sum(sums)
        # An equal share counts 1, whatever the batch: crops of another size change N.
        share = len(vectors) * self._team.size / len(self._codes)
        self._counts.lerp_(counts / share, 1 - self._decay)
        self._sums.lerp_(sums / share, 1 - self._decay)
        if self._averaged:
            self._codes.copy_(self._sums / self._counts.clamp_min(1e-6)[:, None])
        return counts

    def restart_dead(self, vectors: Tensor, chosen: Tensor) -> Tensor:
        """Moves dead codes onto recent `vectors` [N, D], likelier where the `chosen` codes [N, D] are far off.

        Returns:
            The restarted codes' indices.
        """
        dead = (self._counts < _DEAD_SHARE).nonzero()[:, 0][: len(vectors)]
        if not len(dead):
            return dead
        errors = (vectors - chosen).square().sum(dim=1).add_(1e-12)
        picked = vectors[torch.multinomial(errors.cpu(), len(dead), generator=self._generator).to(vectors.device)]
        self._codes[dead] = picked
        self._counts[dead] = 1.0
        self._sums[dead] = picked
        self._agree()
        return dead

    def state(self) -> dict[str, Tensor]:
        """The averages and the random numbers; the codes belong to the model."""
        return {"counts": self._counts, "sums": self._sums, "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back to where `state` was taken."""
        self._counts.copy_(state["counts"])
        self._sums.copy_(state["sums"])
        self._generator.set_state(state["generator"])

    def _agree(self) -> None:
        """Same vectors and same random numbers, but a GPU adds in no fixed order: rank 0's result counts."""
        self._team.follow((self._codes, self._counts, self._sums))

    def _attracted(self, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(indices, minlength=len(self._codes)).to(vectors.dtype)
        return counts, torch.zeros_like(self._codes).index_add_(0, indices, vectors)
