"""A prior under training, step by step; it can be put down and taken up again, bit for bit on a CPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.prior.causal import Causal
from pipeline.prior.config import PriorConfig
from pipeline.prior.corpus import Census, Corpus
from pipeline.prior.masked import Masked
from pipeline.prior.model import Geometry, Transformer
from pipeline.training.device import torch_device
from pipeline.training.rate import learning_rate
from pipeline.training.state import State, below

_BETAS = (0.9, 0.95)  # of AdamW: GPT-3's, which forget sooner than the defaults
_BITS = 1 / math.log(2)  # in a nat
_STREAMS = {"weights": 0, "step": 1, "measure": 2, "pictures": 3}  # of random numbers


@dataclass(frozen=True, slots=True)
class PriorReport:
    """Means over the steps since the last report.

    Attributes:
        step: steps done.
        loss: bits per token that was to be predicted; of maskgit those hidden by its own schedule, which is not the
            held-out figure's.
        held_out: bits per token of the held-out rows; None if not measured at this step.
        error: standard error of `held_out` over the rows (bits per token); likewise.
        unigram, by_position: bits per token of the same rows without a model; likewise.
    """

    step: int
    loss: float
    held_out: float | None = None
    error: float | None = None
    unigram: float | None = None
    by_position: float | None = None


class Training:
    """Everything that decides the weights: rows, model, optimizer, random numbers, step.

    Args:
        corpus: the rows.
        census: what was counted over them.
        config: all parameters.

    Raises:
        UsageError: the device is not there.
    """

    def __init__(self, corpus: Corpus, census: Census, config: PriorConfig) -> None:
        self.config, self.census, self._corpus = config, census, corpus
        self._device = torch_device(config.device)
        spec = corpus.parts.spec
        geometry = Geometry(
            codes=spec.codebook_size,
            grid_height=spec.grid_height,
            grid_width=spec.grid_width,
            classes=census.classes,
            causal=config.kind == "gpt",
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
        )
        with self._random("weights", 0):
            self.model = Transformer(geometry, config.dropout)
        self.model.to(self._device)
        self._prior = Causal(self.model) if geometry.causal else Masked(self.model)
        self._optimizer = _optimizer(self.model, config)
        self._batches = corpus.batches()
        self._losses: list[float] = []
        self.done = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.config.steps

    @property
    def exact(self) -> bool:
        """Whether the held-out figure is the code length itself, not an upper bound of it."""
        return self._prior.exact

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint belongs here: at every `checkpoint_interval` steps and at the end."""
        return self.finished or self.done % self.config.checkpoint_interval == 0

    def advance(self) -> PriorReport | None:
        """One step; the report, at every `report_interval`, at checkpoints and at the end."""
        batch = next(self._batches)
        tokens = batch["tokens"].to(self._device)
        condition = self._corpus.conditions(batch, self.census.classes)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.done, self.config)
        self.model.train()
        with self._random("step", self.done):
            dropped = torch.rand(len(condition)) < self.config.condition_dropout
            condition = condition.masked_fill(dropped, self.census.classes).to(self._device)
            with self._autocast():
                loss = self._prior.loss(tokens, condition)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._optimizer.step()
        self.done += 1
        self._losses.append(loss.item() * _BITS)
        return self._report() if self.checkpoint_due or self.done % self.config.report_interval == 0 else None

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """Bits per token of the held-out rows, and the standard error over the rows.

        Every measurement draws the same masks, so that those of several steps compare.
        """
        self.model.eval()
        rows, places = self.census.tokens.shape
        nats = torch.zeros(rows)
        with self._random("measure", 0), self._autocast():
            for start in range(0, rows, self.config.batch_size):
                some = slice(start, start + self.config.batch_size)
                tokens, condition = (x[some].to(self._device) for x in (self.census.tokens, self.census.conditions))
                for draw in range(self._prior.draws):
                    nats[some] += self._prior.nats(tokens, condition, draw).cpu() / self._prior.draws
        bits = nats * (_BITS / places)
        return bits.mean().item(), bits.std(correction=1).item() / math.sqrt(rows) if rows > 1 else math.nan

    def sample(self) -> Tensor:
        """Tokens of `pictures` samples: int64 [n, h, w]; conditions, if there are any, in turn."""
        self.model.eval()
        geometry, count = self.model.geometry, self.config.pictures
        condition = torch.arange(count) % max(1, geometry.classes)
        with self._random("pictures", self.done), self._autocast():
            tokens = self._prior.sample(condition.to(self._device), self.config.sampler)
        return tokens.reshape(count, geometry.grid_height, geometry.grid_width)

    def state(self) -> State:
        """What it takes to go on from here."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self._optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{moment}": moments[moment] for moment in moments}
        progress = {"rows": self._corpus.state(), "losses": self._losses}
        return State(self.done, self.config.identity(), progress, tensors)

    def restore(self, state: State) -> None:
        """Goes on from `state`.

        Raises:
            UsageError: it was made on other rows.
        """
        try:
            self._corpus.restore(state.progress["rows"])
        except UsageError as exc:
            raise UsageError(f"the training has done {state.step:,} steps and cannot go on: {exc}") from exc
        self.model.load_state_dict(below("model.", state.tensors))
        for name, parameter in self.model.named_parameters():
            moments = below(f"optimizer.{name}.", state.tensors)
            self._optimizer.state[parameter] = {k: v if k == "step" else v.to(self._device) for k, v in moments.items()}
        self._losses = list(state.progress["losses"])
        self.done = state.step

    def _report(self) -> PriorReport:
        loss = float(np.mean(self._losses))
        self._losses = []
        if not self.checkpoint_due:
            return PriorReport(self.done, loss)
        baselines = self.census.baselines
        return PriorReport(self.done, loss, *self.measure(), baselines.unigram, baselines.by_position)

    def _autocast(self) -> torch.autocast:
        wanted = self.config.precision
        enabled = wanted == "bf16" or (wanted == "auto" and self._device.type == "cuda")
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def _random(self, stream: str, number: int) -> Iterator[None]:
        """Random numbers that depend on the seed, their use and a number alone: so a state need not hold any."""
        seed = np.random.SeedSequence([self.config.seed, _STREAMS[stream], number]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(int(seed[0]))
            yield


def _optimizer(model: Transformer, config: PriorConfig) -> torch.optim.AdamW:
    """AdamW; embeddings and the gains of norms do not decay."""
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) in decayed]},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=_BETAS, weight_decay=config.weight_decay)
