"""Which of several training processes this one is."""

import os

import torch.distributed

from pipeline.errors import UsageError


def rank_and_world(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """This process's rank, and the number of ranks.

    Args:
        rank, world: what the caller says; if None, torch.distributed's if it is initialised, else those of
            torchrun's environment (RANK, WORLD_SIZE), else 0 of 1.

    Raises:
        UsageError: only one of the two is given, or the environment's are no numbers.
    """
    if (rank is None) != (world is None):
        raise UsageError(f"rank and world must be given together, got rank={rank}, world={world}")
    if rank is not None and world is not None:
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        return int(told[0]), int(told[1])
    except ValueError as error:
        raise UsageError(f"RANK and WORLD_SIZE must be numbers, got {told[0]!r} and {told[1]!r}") from error
