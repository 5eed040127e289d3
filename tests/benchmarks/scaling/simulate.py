"""One simulated run, and its figures."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from pipeline.config import JobConfig, resolve
from pipeline.driver import Driver
from pipeline.output import Output
from pipeline.progress import Silent
from pipeline.qa.gates import Gates
from pipeline.resume import Todo
from pipeline.schedule import Schedule, State
from pipeline.shards.manifest import Shard
from pipeline.signals import Stop
from pipeline.storage import Storage
from tests.benchmarks.scaling.site import HOUR, Lot, Site
from tests.benchmarks.scaling.world import World


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of a run. All GPUs are paid from the first moment to the last part.

    Attributes:
        gpus, shards: of the site.
        committed: shards with a part; all of them, or the simulation shows a fault.
        hours: wall time.
        efficiency: GPU-seconds of an ideal run (all images at the healthy rate, without any wait) over those paid.
        tail: seconds from the first attempt at the last shard to the last part.
        starting, repeated, idle: GPU-hours lost before actors were ready, to attempts that published nothing, and to
            all else: waits, the canary, slow nodes, nodes that were away, the tail.
        attempts, lost: attempts begun, actors lost.
        driver: share of the wall time that the driver was busy.
        seconds: that the simulation itself took.
    """

    gpus: int
    shards: int
    committed: int
    hours: float
    efficiency: float
    tail: float
    starting: float
    repeated: float
    idle: float
    attempts: int
    lost: int
    driver: float
    seconds: float


def simulate(
    site: Site, *, speculation: bool = True, largest_first: bool = True, settings: Iterable[str] = ()
) -> Figures:
    """Run the real driver and schedule over a simulated site; `settings` are of the job, as `--set` has them."""
    began = time.perf_counter()
    lot = Lot(site)
    images = {f"{number:06d}": lot.images() for number in range(site.shards)}
    shards = [Shard(name, f"sim/{name}.tar", count * site.image_bytes, None) for name, count in images.items()]
    with TemporaryDirectory() as folder:
        config = _config(folder, [f"limits.speculate_factor={2.0 if speculation else 0}", *settings])
        world = World(config, site, images)
        todo = Todo(shards, {shard.id: shard for shard in shards}, shards, {}, set(), [])
        sizes = [(shard.id, shard.size or 0) for shard in shards]
        gates = Gates(config.qa)
        schedule = Schedule(sizes, config.limits, canaries=gates.canaries, largest_first=largest_first)
        output = Output(Storage(), config.output.url)
        driver = Driver(config, output, todo, schedule, world, gates, progress=Silent(), stop=Stop())
        driver.work()
        wall = world.now()
        world.dismiss_all()
    useful = sum(images.values()) * statistics.fmean(site.times.work) / site.rate
    paid, bill = site.gpus * wall, world.bill
    return Figures(
        gpus=site.gpus,
        shards=site.shards,
        committed=schedule.count(State.DONE),
        hours=wall / HOUR,
        efficiency=useful / paid,
        tail=max(world.commits) - world.last_begun,
        starting=bill.starting / HOUR,
        repeated=bill.repeated / HOUR,
        idle=(paid - useful - bill.starting - bill.repeated) / HOUR,
        attempts=bill.attempts,
        lost=bill.lost,
        driver=world.busy / wall,
        seconds=time.perf_counter() - began,
    )


def _config(folder: str, settings: list[str]) -> JobConfig:
    flags = {"shards": ["sim"], "model": "sim", "output": folder}
    return resolve(settings=settings, flags=flags, environment={})
