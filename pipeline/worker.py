"""What one actor does. A plain class: `ray.remote` is applied where it is called, in the driver.

An actor pins one model to one device and works on several shards at once, each in a thread of its own; they share the
decode pool and the device. A shard's failure is a value, so that the driver can tell whose fault it was.
"""

import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipeline.config import JobConfig
from pipeline.encoding import Precision, ValueRange, candidates, choose
from pipeline.engine import Engine, Images
from pipeline.engine.calibration import BatchSizes, measure_rate, sweep, token_agreement, try_precisions
from pipeline.errors import Cancelled, ModelError, Reject, ShardError, ShardFault, StorageError, UsageError
from pipeline.feed import CORE_BUDGET, DECODE_BUDGET, Attempt, Feed, FeedFailed
from pipeline.images import ImageConfig, configure_pillow, find_image, prepare, resampler
from pipeline.isolation import IsolatedDecoder, prepare_sample
from pipeline.messages import UNFIT, Calibration, Identity, Pulse, ShardReport, Task
from pipeline.meter import Meter, Part
from pipeline.qa.golden import Golden, golden_agreement, golden_of
from pipeline.qa.networks import Networks, load_networks
from pipeline.schedule import Failure, Kind
from pipeline.scratch import draft_folder, remove_abandoned
from pipeline.select import Selection
from pipeline.shards.manifest import Shard
from pipeline.shards.tar import TarReader
from pipeline.storage import Storage
from pipeline.tokenize_shard import Line, tokenize_shard
from pipeline.tokenizers import load_tokenizer
from pipeline.tokens.writer import PartDamaged

CALIBRATION_IMAGES = 32
COUNTED_SAMPLES = 256  # whose mean size says how many samples a shard has, within some percent
COUNTED_BYTES = 16 << 20  # likewise: the stream is read in blocks, up to one more than the samples take
NO_IMAGES: Images = np.empty((0, 0, 0, 3), np.uint8)
SWITCH_SECONDS = 5e-5  # at Python's default of 5 ms a busy thread cuts the decode threads to a quarter of their speed


def device_here() -> str:
    """`cuda` if this process sees a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Worker:
    """One actor's work.

    Args:
        job: the configuration.
        cpus: threads for decoding, and on a CPU for the model.
        device: `cpu` or `cuda`.
    """

    def __init__(self, job: JobConfig, cpus: int, device: str) -> None:
        self._job, self._cpus, self._device = job, cpus, device
        self._meter = Meter()
        self._storage = Storage(job.storage)
        self._decoders = ThreadPoolExecutor(cpus, thread_name_prefix="decode")
        self._engine: Engine | None = None
        self._line: Line | None = None
        self._digest = ""
        self._golden: list[Golden] = []
        self._golden_of_model = 1.0
        self._networks = Networks()
        self._selection = Selection()
        self._attempts: dict[tuple[str, int], Attempt] = {}

    def load(self) -> Identity:
        """Put the model onto the device, and the networks that QA compares images with.

        Raises:
            ModelError: the model cannot be read, or is not the one that was asked for.
            UsageError: likewise a weight file of QA.
        """
        sys.setswitchinterval(SWITCH_SECONDS)
        configure_pillow()
        config = self._job.model
        model = load_tokenizer(config, self._storage)
        digest = model.weights_hash()
        if config.sha256 and config.sha256 != digest:
            raise ModelError(f"{config.path}: the weights' hash must be {config.sha256}, got {digest}")
        if self._job.qa.samples_per_shard and not model.decodes:
            raise ModelError(
                f"{config.path}: has no decoder, so that QA cannot look at its tokens; set qa.samples_per_shard=0 to "
                "go without, or take a checkpoint that has one"
            )
        if self._job.qa.samples_per_shard and self._job.qa.min_golden_agreement is not None:
            source = config.path, config.subfolder
            self._golden, self._golden_of_model = golden_of(model, self._storage, *source, self._job.image.size)
        self._engine = Engine(
            model,
            device=self._device,
            precision=config.fixed_precision or Precision.EXACT,
            image_size=self._job.image.size,
            multiple=self._job.image.multiple if self._job.image.facts.varies else None,
            batch_size=config.batch_size if config.batch_size != "auto" else None,
            meter=self._meter,
            threads=self._cpus,
            graphs=config.graphs,
        )
        if self._job.qa.samples_per_shard:
            self._networks = load_networks(self._job.qa, self._engine.device, self._job.image.size)
        self._digest = digest
        self._selection = Selection.load(self._job.select, self._job.columns.meta, self._storage)
        profile = model.describe()
        if config.value_range is not ValueRange.SIGNED:
            profile["value_range"] = config.value_range.value
        return Identity(
            weights=digest,
            model=profile,
            spec=self._engine.spec,
            resampler=resampler(self._job.image.decode),
            select=self._selection.describe(),
            downsample=model.downsample,
        )

    def measure(
        self, shards: list[Shard], batch_size: int | None, precision: Precision | None = None
    ) -> Calibration | None:
        """Choose what is not given, and measure each ceiling alone on real images.

        Args:
            shards: the first readable one serves.
            batch_size: images per batch; None for the fastest.
            precision: None for the fastest that keeps `model.min_agreement`.

        Returns:
            None if the shards give no image.
        """
        engine, config = self._loaded(), self._job.model
        files = self._sample(shards)
        start = time.perf_counter()
        images = self._views(files, self._job.image)
        decode_rate = len(files) * self._job.image.views / max(1e-9, time.perf_counter() - start)
        if not len(images):
            return None
        trials = try_precisions(engine, images, [precision] if precision else candidates(self._device))
        chosen = precision or choose(trials, config.min_agreement).precision
        engine.set_precision(chosen)
        device = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        rates = self._sweep(images, batch_size, (device, self._digest, engine.image_size, chosen, config.graphs))
        if config.compile:  # once, for what was chosen: it takes minutes
            engine.set_precision(chosen, compiled=True)
            rates[engine.batch_size] = measure_rate(engine, images, engine.batch_size)
        return Calibration(
            device=device,
            rates=rates,
            batch_size=engine.batch_size,
            decode_rate=decode_rate,
            images=len(images),
            versions={"torch": str(torch.__version__), "python": sys.version.split()[0]},
            trials=tuple(trials),
            precision=chosen,
            decode_agreement=self._decode_agreement(files, images),
            bytes_per_sample=self._bytes_per_sample(shards),
        )

    def start(self, fingerprint: str, batch_size: int, precision: Precision) -> float | None:
        """Get ready for shards; returns the agreement of device and model on the golden images, if that is asked for.

        Raises:
            UsageError: nothing can be written on this node's scratch disk.
        """
        engine, job = self._loaded(), self._job
        _clean(job.cluster.scratch)
        engine.set_precision(precision, compiled=job.model.compile)
        engine.set_batch_size(batch_size)
        if job.model.compile or self._device == "cuda":
            engine.warm_up()  # compiling can take minutes, in which an attempt would seem to hang
        self._meter.reset()
        self._line = Line(
            storage=self._storage,
            engine=engine,
            decoders=self._decoders,
            meter=self._meter,
            image=job.image,
            columns=job.columns,
            output=job.output,
            fingerprint=fingerprint,
            decode=partial(prepare_sample, image=job.image, seed=job.seed, select=job.select),
            tar=job.tar,
            scratch=job.cluster.scratch,
            decode_budget=min(DECODE_BUDGET, CORE_BUDGET * self._cpus) if self._device == "cpu" else DECODE_BUDGET,
            qa=job.qa,
            networks=self._networks,
            selection=self._selection,
        )
        return min(golden_agreement(engine, self._golden), self._golden_of_model) if self._golden else None

    def tokenize(self, task: Task, feed: Feed | None = None) -> ShardReport | Failure:
        """One attempt at one shard; `feed` fetches and decodes it elsewhere."""
        line = self.line
        key = task.shard.id, task.attempt
        attempt = self._attempts[key] = Attempt()
        try:
            if not task.careful:
                return tokenize_shard(task.shard, line, attempt, replace=task.replace, feed=feed)
            limits = self._job.limits
            job = self._job
            isolated = IsolatedDecoder(job.image, job.seed, job.select, limits.sample_seconds, limits.sample_bytes)
            with closing(isolated) as decode:
                return tokenize_shard(task.shard, replace(line, decode=decode), attempt, replace=task.replace)
        except FeedFailed as error:
            return error.failure
        except Exception as error:  # noqa: BLE001 - whose fault it is, the driver decides from the value
            return failure_of(task.shard, error)
        finally:
            del self._attempts[key]

    def cancel(self, shard: str, number: int) -> None:
        """Stop an attempt that is no longer wanted; nothing happens if it has ended."""
        attempt = self._attempts.get((shard, number))
        if attempt is not None:
            attempt.stop.set()

    def pulse(self) -> Pulse:
        """What this actor has done so far, and how far each attempt has moved."""
        attempts = list(self._attempts.items())
        moved = [(shard, number, attempt.moved) for (shard, number), attempt in attempts]
        queues = {
            Part.DECODE.value: sum(attempt.decoding for _, attempt in attempts),
            Part.ENCODE.value: sum(attempt.encoding for _, attempt in attempts),
        }
        return Pulse(self._meter.read(), moved, queues)

    @property
    def line(self) -> Line:
        """What shards are tokenized with; there is one after `start`."""
        assert self._line is not None, "start() comes first"
        return self._line

    def _sweep(self, images: Images, batch_size: int | None, circumstances: tuple[object, ...]) -> dict[int, float]:
        """Choose the batch size, unless it is given or known from an earlier run on this kind of device."""
        engine, known = self._loaded(), BatchSizes()
        if batch_size or self._device == "cpu":
            return sweep(engine, images, batch_size)
        circumstances = *circumstances, str(torch.__version__)
        if (size := known.get(circumstances)) is not None:
            with suppress(ModelError):  # another process may hold some of the memory today
                return sweep(engine, images, size)
        rates = sweep(engine, images, None)
        known.put(engine.batch_size, circumstances)
        return rates

    def _loaded(self) -> Engine:
        assert self._engine is not None, "load() comes first"
        return self._engine

    def _sample(self, shards: list[Shard]) -> list[bytes]:
        """Some real images of the first shard that has one which can be shown: files."""
        for shard in shards:
            try:
                blob = shard.blob()
                with self._storage.stream(blob) as stream:
                    reader = TarReader(stream, url=shard.url, size=blob.size, limits=self._job.tar)
                    found = [find_image(s.members) for s in islice(reader, max(CALIBRATION_IMAGES, 8 * self._cpus))]
            except (ShardError, StorageError):
                continue  # the run itself will report it
            files = [image for image in found if not isinstance(image, Reject)]
            if any(not isinstance(prepare(file, self._job.image), Reject) for file in files):
                return files
        return []

    def _bytes_per_sample(self, shards: list[Shard]) -> float:
        """Of the first samples; of several whole shards if they are small, as shards differ."""
        samples = read = 0
        for shard in shards:
            with suppress(ShardError, StorageError):  # the run itself will report it
                blob = shard.blob()
                with self._storage.stream(blob) as stream:
                    reader = TarReader(stream, url=shard.url, size=blob.size, limits=self._job.tar)
                    counted = 0
                    for counted, _ in enumerate(reader, 1):
                        if counted >= COUNTED_SAMPLES and reader.stats.bytes_read >= COUNTED_BYTES:
                            break
                    samples, read = samples + counted, read + reader.stats.bytes_read
            if samples >= COUNTED_SAMPLES:
                break
        return read / samples if samples else 0.0

    def _views(self, files: list[bytes], image: ImageConfig) -> Images:
        """The views of those files that can be shown, of the shape that most of them have: [n, height, width, 3]."""
        prepared = self._decoders.map(lambda file: prepare(file, image), files)
        views = [view.pixels for one in prepared if not isinstance(one, Reject) for view in one.views]
        shapes = Counter(pixels.shape for pixels in views).most_common(1)
        return np.stack([pixels for pixels in views if pixels.shape == shapes[0][0]]) if views else NO_IMAGES

    def _decode_agreement(self, files: list[bytes], images: Images) -> float:
        """The fraction of the tokens that mode `exact` of decoding would give as well."""
        image = self._job.image
        if image.decode == "exact":
            return 1.0
        exact = self._views(files, image.model_copy(update={"decode": "exact"}))
        return token_agreement(self._loaded(), images, exact)


def _clean(scratch: Path | None) -> None:
    """Take away what killed actors left on this node's scratch disk, and see that drafts can be made there."""
    try:
        remove_abandoned(scratch)
        with draft_folder(scratch):
            pass
    except OSError as error:
        raise UsageError(
            f"cluster.scratch must be a folder on a local disk that can be written on every node, got "
            f"{scratch or tempfile.gettempdir()} on {socket.gethostname()}: {error}"
        ) from error


_FAULTS: tuple[tuple[type[Exception], Kind, str], ...] = (
    (Cancelled, Kind.INFRA, "cancelled"),
    (StorageError, Kind.INFRA, "storage"),
    (UsageError, Kind.FATAL, "usage"),
    (PartDamaged, Kind.INFRA, "local_disk"),
    (OSError, Kind.INFRA, "local_disk"),  # the store's are StorageErrors: this is the scratch folder, full or broken
    (MemoryError, Kind.INFRA, "memory"),
    (torch.OutOfMemoryError, Kind.INFRA, "memory"),
    (torch.AcceleratorError, Kind.INFRA, UNFIT),  # a broken CUDA context: nothing works in this process any more
)


def failure_of(shard: Shard, error: Exception) -> Failure:
    """Whose fault an exception is."""
    if isinstance(error, ShardError):
        return Failure(Kind.TASK, error.reason.value, str(error))
    for fault, kind, reason in _FAULTS:
        if isinstance(error, fault):
            return Failure(kind, reason, f"{shard.url}: {error or type(error).__name__}")
    where = "".join(traceback.format_exception(error, limit=-3))
    return Failure(Kind.TASK, ShardFault.INTERNAL.value, f"{shard.url}: {type(error).__name__}: {error}\n{where}")
