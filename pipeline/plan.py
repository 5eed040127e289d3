"""What a run would take, before it is begun: list, freeze, tokenize a few shards in this process, extrapolate.

Nothing is written but temporary files.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.config import JobConfig
from pipeline.errors import UsageError
from pipeline.forecast import PriceTable, cost, requests
from pipeline.messages import Calibration, ShardReport, Task
from pipeline.meter import bound, lanes_of
from pipeline.schedule import Failure
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from pipeline.tokens.schema import Counts
from pipeline.worker import Worker, device_here

NO_FINGERPRINT = "0" * 64  # of parts that nobody will read


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast.

    Attributes:
        shards, missing: listed; of them not there.
        input_bytes: of all shards.
        images: samples expected, from those per byte in the probed shards.
        device: that was probed.
        model_rate, decode_rate: views/s of one actor, each stage alone.
        actor_rate: views/s of one actor, all stages together, on whole probed shards.
        actors: that the time is computed for.
        seconds: wall time of the run without start-up.
        actor_hours: of all actors together.
        cpu_seconds: CPU time of all actors together.
        output_bytes: of all parts, from the probed shards' own.
        bottleneck: the stage (`meter.Part`) that was busy for most of the probe, per lane: `fetch` is the store.
        bottleneck_busy: the share of the time.
        cores_per_gpu: cores that keep one GPU supplied; None where the CPU is the device.
        requests, requests_per_second: to the store, retries not counted.
        cost: in the currency of the price table; None if it has no price for the device.
        cost_per_month: of keeping the output; None without a price table.
        tokens: expected in all.
    """

    shards: int
    missing: int
    input_bytes: int
    images: int
    device: str
    model_rate: float
    decode_rate: float
    actor_rate: float
    actors: int
    seconds: float
    actor_hours: float
    cpu_seconds: float
    output_bytes: int
    bottleneck: str
    bottleneck_busy: float
    cores_per_gpu: float | None
    requests: int
    requests_per_second: float
    cost: float | None
    cost_per_month: float | None
    tokens: int


@dataclass(frozen=True, slots=True)
class _Probe:
    """What the probed shards took.

    Attributes:
        counts: of their samples.
        part_bytes, shard_bytes: size of their parts, and their own.
        wall, cpu: seconds.
        bound: the busiest stage, and the share of the time.
    """

    counts: Counts
    part_bytes: int
    shard_bytes: int
    wall: float
    cpu: float
    bound: tuple[str, float]


def plan(config: JobConfig, probes: int = 2, prices: PriceTable | None = None) -> Plan:
    """Forecast a run.

    Args:
        config: shards and model must be given; output need not be.
        probes: shards to tokenize.
        prices: what the user pays; `cluster.price_per_actor_hour` serves without.

    Raises:
        UsageError: no shard could be read.
        ModelError: the model cannot be read.
    """
    storage = Storage(config.storage)
    config.check_model(storage)
    shards = freeze(storage, config.shards)
    there = [shard for shard in shards if shard.size]
    if not there:
        raise UsageError("none of the shards is there: nothing to plan")
    probes = min(probes, len(there))
    probed = [there[i * len(there) // probes] for i in range(probes)]
    with TemporaryDirectory(prefix="tokenmill-plan-") as folder:
        job = config.model_copy(update={"output": config.output.model_copy(update={"url": folder})})
        device = device_here()
        actors = (config.cluster.actor_range or (1, 1))[1]
        cpus = config.cluster.cpus_per_actor or max(1, len(os.sched_getaffinity(0)) // actors)
        worker = Worker(job, cpus, device)
        tokens_per_view = worker.load().tokens_per_view(config.image.view_pixels)
        fixed = config.model.batch_size
        measured = worker.measure(probed, fixed if isinstance(fixed, int) else None, config.model.fixed_precision)
        if measured is None:
            raise UsageError(f"no image could be read in {', '.join(shard.url for shard in probed)}")
        worker.start(NO_FINGERPRINT, measured.batch_size, measured.precision)
        in_flight = config.cluster.shards_in_flight
        lanes = lanes_of(cpus, cpus if device == "cpu" else 1, min(in_flight, len(probed)))
        found = _probe(worker, probed, in_flight, lanes, Path(folder))
    if prices is None and config.cluster.price_per_actor_hour is not None:
        prices = PriceTable(actor_hour={"": config.cluster.price_per_actor_hour})
    return _forecast(shards, measured, found, actors, tokens_per_view, prices)


def _probe(worker: Worker, probed: Sequence[Shard], in_flight: int, lanes: Mapping[str, int], output: Path) -> _Probe:
    """Tokenize shards as a run does; `lanes` work at each stage."""
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(in_flight) as pool:
        answers = list(pool.map(worker.tokenize, [Task(shard, 1) for shard in probed]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = [(shard, answer) for shard, answer in zip(probed, answers, strict=True) if isinstance(answer, ShardReport)]
    rows = sum(report.counts.rows for _, report in done)
    if not rows:  # the run itself will name the bad ones; the forecast rests on the others
        why = "; ".join(answer.message for answer in answers if isinstance(answer, Failure))
        raise UsageError(f"none of the probed shards gave a row: {why or 'no sample is wanted'}")
    samples = sum(report.counts.samples - report.counts.filtered for _, report in done)
    return _Probe(
        counts=Counts(samples, 0, rows, 0),
        part_bytes=sum(path.stat().st_size for path in output.glob("tokens/*.parquet")),
        shard_bytes=sum(shard.size or 0 for shard, _ in done),
        wall=wall,
        cpu=cpu,
        bound=bound(worker.pulse().reading.busy, lanes, wall),
    )


def _forecast(
    shards: Sequence[Shard],
    measured: Calibration,
    found: _Probe,
    actors: int,
    tokens_per_view: int,
    prices: PriceTable | None,
) -> Plan:
    sizes = [shard.size for shard in shards if shard.size]
    factor = sum(sizes) / found.shard_bytes
    rows, rate = round(found.counts.rows * factor), found.counts.rows / found.wall
    seconds, asked = rows / (rate * actors), requests(sizes)
    hours, output_bytes = actors * seconds / 3600, round(found.part_bytes * factor)
    on_cpu = measured.device == "cpu"
    return Plan(
        shards=len(shards),
        missing=len(shards) - sum(shard.size is not None for shard in shards),
        input_bytes=sum(sizes),
        images=round(found.counts.samples * factor),
        device=measured.device,
        model_rate=measured.model_rate,
        decode_rate=measured.decode_rate,
        actor_rate=rate,
        actors=actors,
        seconds=seconds,
        actor_hours=hours,
        cpu_seconds=found.cpu * factor,
        output_bytes=output_bytes,
        bottleneck=found.bound[0],
        bottleneck_busy=found.bound[1],
        cores_per_gpu=None if on_cpu else measured.model_rate * found.cpu / found.counts.rows,
        requests=asked,
        requests_per_second=asked / seconds,
        cost=cost(prices, measured.device, hours, sum(sizes), asked) if prices else None,
        cost_per_month=output_bytes / 1e9 * prices.gb_month if prices else None,
        tokens=rows * tokens_per_view,
    )
