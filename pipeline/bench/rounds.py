"""Rounds of every stage alone and then all of them together, and what their ratios say.

Each round measures everything once, one after the other, and ratios are taken within a round: a machine that others use
as well spoils seconds, but hardly ratios.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from pipeline.bench.choices import decode_modes, model_alone
from pipeline.bench.figures import Bench, ModelFigures, StageFigures
from pipeline.bench.material import Material, gather
from pipeline.bench.measure import Spread, Taken, free_cores, peak_memory, usable_cores
from pipeline.bench.roofline import Cost, Roofline, Stage, roofline
from pipeline.bench.stages import Stages
from pipeline.bench.steady import Window, steady
from pipeline.config import JobConfig
from pipeline.encoding import Precision
from pipeline.errors import UsageError
from pipeline.images import ImageConfig
from pipeline.meter import Part
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from pipeline.worker import Worker, device_here

OnStep = Callable[[str, int, int], None]  # (what is measured now, steps done, steps in all)

FIRST_SHARDS = 8  # of the user's, in turn
NO_FINGERPRINT = "0" * 64  # of parts that nobody will read
BY_BYTES = (Stage.FETCH, Stage.TAR)
_UNITS = {Stage.FETCH: ("MB/s", 1e-6), Stage.TAR: ("MB/s", 1e-6), Stage.WRITE: ("tokens/s", 1.0)}


@dataclass(frozen=True, slots=True)
class _Round:
    taken: Mapping[Stage, Taken]
    costs: Mapping[Stage, Cost]
    window: Window
    cores: float
    roof: Roofline

    @property
    def fraction(self) -> float:
        return self.window.rate / self.roof.bound


def bench(config: JobConfig, *, seconds: float = 3.0, rounds: int = 3, on_step: OnStep | None = None) -> Bench:
    """Measure a job on this machine. Writes nothing but temporary files.

    Args:
        config: shards and model must be given; output need not be.
        seconds: of each measurement.
        rounds: so often everything is measured.
        on_step: called before each measurement.

    Raises:
        UsageError: the job cannot be measured: no readable shard, no such model.
    """
    storage = Storage(config.storage)
    config.check_model(storage)
    shards = [shard for shard in freeze(storage, config.shards) if shard.size][:FIRST_SHARDS]
    if not shards:
        raise UsageError("none of the shards is there: nothing to measure")
    with TemporaryDirectory(prefix="tokenmill-bench-") as name:
        output = config.output.model_copy(update={"url": name})
        return _Benchmark(config.model_copy(update={"output": output}), shards, seconds, rounds, on_step).run()


class _Benchmark:
    """One benchmark of a job whose output is a temporary folder."""

    def __init__(
        self, config: JobConfig, shards: list[Shard], seconds: float, rounds: int, on_step: OnStep | None
    ) -> None:
        self._config, self._shards, self._seconds, self._rounds = config, shards, seconds, rounds
        self._device, self._cpus = device_here(), config.cluster.cpus_per_actor or usable_cores()
        self._kinds = [stage for stage in Stage if stage is not Stage.INSPECT or config.qa.samples_per_shard]
        self._modes = list(decode_modes(config.image))
        self._on_step, self._done = on_step or (lambda *_: None), 0

    def run(self) -> Bench:
        """Everything, in order."""
        worker = self._started()
        self._step("memory of a run")  # before anything else is held
        self._together(worker, images=0)
        memory = peak_memory(), torch.cuda.max_memory_allocated() if self._device == "cuda" else None
        self._step("reading")
        material = gather(worker.line, self._shards)
        stages = Stages(
            worker.line,
            material,
            streams=self._config.cluster.shards_in_flight,
            folder=Path(self._config.output.url),
        )
        modes = {str(image.decode): self._mode(stages, image) for image in self._modes}
        models = [found for precision in Precision if (found := self._model(precision, material))]
        rounds = [self._round(number, worker, stages, material) for number in range(self._rounds)]
        return self._summary(worker, material, modes, models, rounds, memory)

    def _started(self) -> Worker:
        """An actor that is ready for shards, as the driver makes it."""
        self._step("loading, calibrating")
        worker = Worker(self._config, self._cpus, self._device)
        worker.load()
        fixed, precision = self._config.model.batch_size, self._config.model.fixed_precision
        found = worker.measure(self._shards, fixed if isinstance(fixed, int) else None, precision)
        if found is None:
            raise UsageError(f"no image could be read in {', '.join(shard.url for shard in self._shards)}")
        worker.start(NO_FINGERPRINT, found.batch_size, found.precision)
        return worker

    def _mode(self, stages: Stages, image: ImageConfig) -> float:
        self._step(f"decode {image.decode}, one core")
        return stages.decode_on_one_core(self._seconds, image).rate

    def _model(self, precision: Precision, material: Material) -> ModelFigures | None:
        self._step(f"model, {precision}")
        return model_alone(
            self._config, precision, material, device=self._device, threads=self._cpus, seconds=self._seconds
        )

    def _round(self, number: int, worker: Worker, stages: Stages, material: Material) -> _Round:
        taken: dict[Stage, Taken] = {}
        for stage in self._kinds:
            self._step(f"round {number + 1}: {stage}")
            taken[stage] = getattr(stages, stage)(self._seconds)
        self._step(f"round {number + 1}: all together")
        before = free_cores(usable_cores())
        window = self._together(worker, self._config.cluster.shards_in_flight * len(material.rows))
        cores = (before + free_cores(usable_cores())) / 2
        costs = {stage: _cost(stage, one, material) for stage, one in taken.items()}
        return _Round(taken, costs, window, cores, roofline(costs, cores, on_cpu=self._device == "cpu"))

    def _together(self, worker: Worker, images: int) -> Window:
        in_flight = self._config.cluster.shards_in_flight
        return steady(worker, self._shards, in_flight=in_flight, images=images, seconds=self._seconds)

    def _summary(
        self,
        worker: Worker,
        material: Material,
        modes: dict[str, float],
        models: Sequence[ModelFigures],
        rounds: Sequence[_Round],
        memory: tuple[int, int | None],
    ) -> Bench:
        middle = sorted(rounds, key=lambda one: one.fraction)[len(rounds) // 2]
        engine, needed = worker.line.engine, [one.roof.cores_per_device for one in rounds]
        return Bench(
            device=torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            cores=usable_cores(),
            free_cores=Spread.of([one.cores for one in rounds]),
            image_size=engine.image_size,
            precision=engine.precision.value,
            decode=self._config.image.decode,
            batch_size=engine.batch_size,
            shard=material.shard.url,
            bytes_per_image=material.bytes_per_image,
            rows=len(material.rows),
            stages={stage.value: _figures(stage, rounds, engine.spec.tokens_per_view) for stage in self._kinds},
            decode_modes=modes,
            models=models,
            end_to_end=Spread.of([one.window.rate for one in rounds]),
            end_to_end_cpu_ms=Spread.of([1e3 * one.window.cpu / one.window.images for one in rounds]),
            bound=Spread.of([one.roof.bound for one in rounds]),
            fraction=Spread.of([one.fraction for one in rounds]),
            limit=middle.roof.limit,
            heaviest=middle.roof.heaviest.value,
            cores_per_device=median(cores for cores in needed if cores is not None) if any(needed) else None,
            device_busy=Spread.of([one.window.share(Part.ENCODE) for one in rounds]),
            peak_memory=memory[0],
            device_memory=memory[1],
        )

    def _step(self, what: str) -> None:
        steps = 3 + len(self._modes) + len(Precision) + self._rounds * (len(self._kinds) + 1)
        self._on_step(what, self._done, steps)
        self._done += 1


def _cost(stage: Stage, taken: Taken, material: Material) -> Cost:
    """What an image costs at a stage; fetch and tar count bytes."""
    images = taken.units / material.bytes_per_image if stage in BY_BYTES else taken.units
    return Cost(images / taken.wall, taken.cpu / images)


def _figures(stage: Stage, rounds: Sequence[_Round], tokens_per_image: int) -> StageFigures:
    unit, factor = _UNITS.get(stage, ("images/s", 1.0))
    factor = factor * tokens_per_image if unit == "tokens/s" else factor
    return StageFigures(
        rate=Spread.of([one.costs[stage].rate for one in rounds]),
        cpu_ms=Spread.of([1e3 * one.costs[stage].cpu for one in rounds]),
        share=median(one.roof.share(stage) for one in rounds),
        native=Spread.of([factor * one.taken[stage].rate for one in rounds]),
        unit=unit,
    )
