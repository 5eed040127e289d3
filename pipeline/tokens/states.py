"""The state of a reader, as it goes into a checkpoint: which rows of which epoch of which data it has yet to give.

A state is a dict of numbers and texts, safe for JSON and `torch.load(weights_only=True)`. It grows with the number of
readers that were merged, not with the data; where grids vary, also with the rows that wait for others of their grid.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from pipeline.errors import UsageError
from pipeline.tokens.order import Order, Range, Reader, Sampling
from pipeline.tokens.parts import Parts

MARK: Final = "tokenmill_reader"  # its value is the version of the layout
VERSION: Final = 1
LAGGING: Final = "_steps_since_snapshot"  # in the state of a StatefulDataLoader: batches given since it was taken


def make_state(
    parts: Parts, order: Order, epoch: int, sampling: Sampling, reader: Reader, left: Iterable[Range]
) -> dict[str, Any]:
    """The state of one reader."""
    return {
        MARK: VERSION,
        "data": parts.digest,
        "order": {**_drawn_by(sampling), "checksum": order.checksum},
        "epoch": epoch,
        "reader": asdict(reader),
        "left": [list(some) for some in left],
    }


def merge_states(states: Iterable[Any]) -> dict[str, Any]:
    """One state of what all readers of an epoch have yet to give, for any number of readers to divide anew.

    Args:
        states: of every rank, once: a dataset's state, or that of a StatefulDataLoader, which holds its workers'.

    Raises:
        UsageError: a reader's state is missing or comes twice, or they are not of one epoch of one data set.
    """
    found = [one for state in states for one in _states_in(state)]
    if not found:
        raise UsageError("there is no state of a TokenDataset in what was given to merge_states")
    for name in ("data", "order", "epoch"):
        if any(state[name] != found[0][name] for state in found):
            raise UsageError(f"the states to merge must agree in {name}; they are of different moments or data")
    readers = [Reader(**state["reader"]) for state in found if state["reader"]]
    world, workers = (readers[0].world, readers[0].workers) if readers else (0, 0)
    expected = {Reader(rank, world, worker, workers) for rank in range(world) for worker in range(workers)}
    if len(readers) != len(found) or set(readers) != expected or len(readers) != len(expected):
        raise UsageError(
            f"merge_states must be given the states of all {len(expected)} readers ({world} ranks x {workers} workers) "
            f"once, got {len(found)}"
        )
    left = sorted(tuple(some) for state in found for some in state["left"])
    return {**found[0], "reader": None, "left": [list(some) for some in left]}


def check_state(state: Mapping[str, Any], parts: Parts, sampling: Sampling, order_of: Callable[[int], Order]) -> None:
    """See that a state is one, and of this data and order.

    Args:
        state: what is to be loaded.
        parts, sampling: of the dataset that is to load it.
        order_of: the order of an epoch.

    Raises:
        UsageError: it is not.
    """
    if state.get(MARK) != VERSION:
        raise UsageError(f"this is no state of a TokenDataset of version {VERSION}: {MARK} is {state.get(MARK)!r}")
    if state["data"] != parts.digest:
        raise UsageError(
            "the state was taken on other data: the parts have changed since. To go on over the same rows, list the "
            "same parts (find_parts(..., only=names))"
        )
    drawn = _drawn_by(sampling)
    differing = [f"{name} was {state['order'].get(name)!r}, is {now!r}" for name, now in drawn.items()
                 if state["order"].get(name) != now]  # fmt: skip
    if differing:
        raise UsageError(f"the state was taken in another order: {'; '.join(differing)}")
    if order_of(state["epoch"]).checksum != state["order"]["checksum"]:
        raise UsageError("the state was taken in another order: another version of NumPy draws it differently")


def progress_of(state: Mapping[str, Any], reader: Reader) -> tuple[int, list[Range], bool]:
    """Epoch, ranges left, and whether these are all readers' (else they are this reader's own).

    Raises:
        UsageError: the state is another reader's.
    """
    told = state["reader"]
    if told is not None and Reader(**told) != reader:
        raise UsageError(
            f"the state is of reader {told}, this is {asdict(reader)}: with another number of ranks or workers, load "
            "merge_states(states of all ranks) into every rank's dataset"
        )
    return int(state["epoch"]), [(int(start), int(stop)) for start, stop in state["left"]], told is None


def _drawn_by(sampling: Sampling) -> dict[str, Any]:
    """What the order depends on; the batch size is not among it."""
    names = {"view", "shuffle"} | ({"seed", "buffer_rows"} if sampling.shuffle or sampling.view == "one" else set())
    return sampling.model_dump(include=names)


def _states_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """The states of ours in a nested document."""
    if isinstance(value, Mapping):
        if MARK in value:
            yield value
        else:
            if value.get(LAGGING):
                raise UsageError("the loader's state is older than its batches; set snapshot_every_n_steps=1")
            for inner in value.values():
                yield from _states_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _states_in(inner)
