"""The workers of one training: each has a slice of every batch, and all hold the same weights.

One process alone is a team of one, for which nothing is exchanged. Gradients are averaged as torch's
DistributedDataParallel does it, but all at once after the backward pass: the model is called in two halves around the
quantizer, which a wrapper of one forward pass does not fit.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import RunFailed
from pipeline.model import VQModel, weights_hash

_DIGEST_DIGITS = 15  # hexadecimal; they fit into int64


class Team:
    """This process among the workers of the training: those of torch.distributed, if it is initialised.

    Every method but `slice_of` must be called by all workers in the same order.

    Attributes:
        rank: number of this process; 0 leads: it alone writes files.
        size: number of processes.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def slice_of(self, count: int) -> slice:
        """This worker's part of `count` items, a multiple of the team's size."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the workers, in place."""
        return self.sum(values).div_(self.size) if self.size > 1 else values

    def gather(self, rows: Tensor) -> Tensor:
        """All workers' rows [n, ...], in order of rank: [size * n, ...]."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dense = tensor.detach().contiguous()
                dist.broadcast(dense, src=0)
                tensor.detach().copy_(dense)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any worker says so."""
        return bool(self.sum(torch.tensor(float(flag), device=device)).item()) if self.size > 1 else flag

    def check_agreement(self, model: VQModel) -> None:
        """Makes sure that all workers hold the same weights.

        Raises:
            RunFailed: they do not: a device computes wrongly, or their software differs.
        """
        if self.size > 1:
            digest = torch.tensor([int(weights_hash(model)[:_DIGEST_DIGITS], 16)], device=model.device)
            if len(set(self.gather(digest).tolist())) > 1:
                raise RunFailed("the workers' weights must be equal, but they have come apart; check the devices")

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the workers."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(means, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))
