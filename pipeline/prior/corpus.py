"""The rows of a run, split: those trained on as batches, those held out in memory, and what is counted over both.

Held out are whole samples, or whole groups of them (`hold_out_by`), chosen by a hash: the choice depends on the seed
and the group alone, not on the order, and all views of a sample are on one side.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.prior.config import PriorConfig
from pipeline.prior.entropy import Baselines, Counts
from pipeline.select import field_of, parse_sidecar
from pipeline.storage import Storage
from pipeline.tokens.columns import NO_NUMBER
from pipeline.tokens.dataset import Batch, TokenDataset
from pipeline.tokens.order import Sampling
from pipeline.tokens.parts import Parts
from pipeline.tokens.schema import TokenSpec
from pipeline.training.device import memory_bytes, torch_device

_MOST_CLASSES = 100_000  # each has an embedding; more are rather somebody's ids
_COUNTED_ROWS = 1024  # read at once while counting
_NUMBER = 4  # bytes of a count or a logit
_TRAINED = 3  # numbers for each logit of a batch: itself, the logarithm of its probability, its gradient
_DRAWN = 4  # of a sample that is drawn at all places at once: the same, noise, and their sum


@dataclass(frozen=True, slots=True)
class Census:
    """What one pass over all rows finds.

    Attributes:
        rows, held_out_rows: that are trained on, and that are held out.
        classes: labels are in [0, classes); 0 if they are not asked for.
        tokens: int64 [n, N], of the held-out rows that are measured on.
        conditions: int64 [n], theirs: the label, or `classes` for none.
        baselines: bits per token of these rows without a model.
    """

    rows: int
    held_out_rows: int
    classes: int
    tokens: Tensor
    conditions: Tensor
    baselines: Baselines


class Corpus:
    """The rows of a run, split into those to train on and those held out.

    Args:
        storage: access to them.
        parts: of the run.
        config: split, condition, order.

    Raises:
        UsageError: a column or view that is asked for is not there or of no use, the grids vary, or what a training
            needs for each code at each place cannot fit into memory.
    """

    def __init__(self, storage: Storage, parts: Parts, config: PriorConfig) -> None:
        if parts.spec.varies:
            raise UsageError("the grids of this run have several shapes; a prior trains on a run of one shape")
        _check_memory(parts.spec, config)
        self.parts, self._storage, self._config = parts, storage, config
        self._split = Split(config)
        self._columns = [self._split.column] + ["label"] * (config.condition == "label")
        sampling = Sampling(batch=config.batch_size, seed=config.seed, view=config.view)
        self._rows = self._dataset(sampling)
        self._split.check(parts.schema)
        self._epoch = 0

    def take_census(self) -> Census:
        """One pass over all rows.

        Raises:
            UsageError: there is nothing to train on or nothing to measure on, or the labels are none.
        """
        spec, counted, held = self.parts.spec, 0, list[Batch]()
        view = self._config.view if isinstance(self._config.view, int) else "all"
        counts, kept, held_rows = Counts(spec.tokens_per_view, spec.codebook_size), 0, 0
        lowest = highest = NO_NUMBER
        for batch in self._dataset(Sampling(batch=_COUNTED_ROWS, shuffle=False, view=view)):
            mine, theirs = self._split.apart(batch)
            counts.add(mine["tokens"])
            counted, held_rows = counted + len(mine["tokens"]), held_rows + len(theirs["tokens"])
            if "label" in batch:
                lowest, highest = min(lowest, int(batch["label"].min())), max(highest, int(batch["label"].max()))
            if kept < self._config.hold_out_rows and len(theirs["tokens"]):
                held.append(theirs)
                kept += len(theirs["tokens"])
        self._check(counted, held_rows, (lowest, highest))
        classes = highest + 1
        tokens = torch.cat([batch["tokens"] for batch in held])[: self._config.hold_out_rows]
        conditions = torch.cat([self.conditions(batch, classes) for batch in held])[: self._config.hold_out_rows]
        return Census(counted, held_rows, classes, tokens, conditions, counts.baselines(tokens))

    def batches(self) -> Iterator[Batch]:
        """The rows to train on, epoch after epoch; batches are smaller by the rows that are held out."""
        while True:
            for batch in self._rows:
                mine, _ = self._split.apart(batch)
                if len(mine["tokens"]):
                    yield mine
            self._epoch += 1
            self._rows.set_epoch(self._epoch)

    def conditions(self, batch: Batch, classes: int) -> Tensor:
        """The condition of each row: int64 [B] in [0, classes]; `classes` where there is no label."""
        if self._config.condition == "none":
            return torch.full((len(batch["tokens"]),), classes)
        label: Tensor = batch["label"]
        return torch.where(label == NO_NUMBER, classes, label)

    def state(self) -> dict[str, Any]:
        """Where the batches are, as JSON."""
        return self._rows.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
            UsageError: it was taken on other rows.
        """
        self._rows.load_state_dict(state)
        self._epoch = int(state["epoch"])

    def _dataset(self, sampling: Sampling) -> TokenDataset:
        return TokenDataset(self.parts, sampling, columns=self._columns, rank=0, world=1, storage=self._storage)

    def _check(self, rows: int, held_out: int, labels: tuple[int, int]) -> None:
        config, (lowest, highest) = self._config, labels
        if not rows or not held_out:
            raise UsageError(
                f"hold_out must leave rows on both sides, got {rows:,} to train on and {held_out:,} held out: change "
                f"hold_out ({config.hold_out}), hold_out_by ({config.hold_out_by}) or seed"
            )
        if config.condition == "label" and not (lowest >= NO_NUMBER and 0 <= highest < _MOST_CLASSES):
            raise UsageError(
                f"condition=label needs labels from 0 to at most {_MOST_CLASSES - 1:,}, got {lowest} as the lowest and "
                f"{highest} as the highest ({NO_NUMBER}: a row has none)"
            )


class Split:
    """Which rows are held out.

    Args:
        config: how many, by what.
    """

    def __init__(self, config: PriorConfig) -> None:
        self._by, self._seed = config.hold_out_by, config.seed
        self._limit = math.floor(config.hold_out * 2**64)

    @property
    def column(self) -> str:
        """The column that it needs."""
        return self._by.partition(".")[0]

    def check(self, schema: pa.Schema) -> None:
        """See that the column has one name or number in each row.

        Raises:
            UsageError: it has not.
        """
        kind = schema.field(self.column).type
        whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        text = pa.types.is_string(kind) or pa.types.is_dictionary(kind)
        if not text and not (whole and self.column == self._by):
            raise UsageError(
                "hold_out_by must be a column of texts or whole numbers, or a field of one of JSON (meta.photo), got "
                f"{self._by}, where {self.column} is of type {kind}"
            )

    def apart(self, batch: Batch) -> tuple[Batch, Batch]:
        """The rows to train on, and those held out."""
        held = torch.tensor([self._held_out(value) for value in batch[self.column]])
        return _where(batch, ~held), _where(batch, held)

    def _held_out(self, value: Any) -> bool:
        group = str(int(value)) if isinstance(value, Tensor) else self._group(value)
        digest = hashlib.blake2b(f"{self._seed}/{group}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self._limit

    def _group(self, value: str | None) -> str:
        path = tuple(self._by.split(".")[1:])
        found = field_of(parse_sidecar((value or "").encode()), path) if path else value
        if found is None:
            raise UsageError(f"hold_out_by={self._by}: a row has no such value; name a field that every row has")
        return str(found)


def _check_memory(spec: TokenSpec, config: PriorConfig) -> None:
    """Refuse what would be killed for its memory, after all rows were read: there is a number for each code and place.

    Raises:
        UsageError: counts or logits are larger than all the memory there is.
    """
    device, places = torch_device(config.device), spec.tokens_per_view * spec.codebook_size
    rows = {f"batch_size={config.batch_size}": _TRAINED * config.batch_size}
    if config.kind == "maskgit":
        rows[f"pictures={config.pictures}"] = _DRAWN * config.pictures * (1 if config.guidance == 1 else 2)
    needs = [("the counts of the baselines; train on a run of fewer codes or smaller grids", 1, torch.device("cpu"))]
    needs += [(f"{setting}; make it smaller", numbers, device) for setting, numbers in rows.items()]
    for what, numbers, where in needs:
        needed, there = _NUMBER * numbers * places, memory_bytes(where)
        if needed > there:
            raise UsageError(
                f"{spec.tokens_per_view:,} places x {spec.codebook_size:,} codes must fit into memory: {where.type} "
                f"has {there / 1e9:.3g} GB, and {needed / 1e9:.3g} GB are needed for {what}"
            )


def _where(batch: Batch, chosen: Tensor) -> Batch:
    return {
        name: column[chosen] if isinstance(column, Tensor) else [x for x, c in zip(column, chosen, strict=True) if c]
        for name, column in batch.items()
    }
