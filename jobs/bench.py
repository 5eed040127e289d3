"""`tokenmill bench`: how fast this machine is, stage by stage, and what bounds a run on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import AsJson, Job, Model, Settings, Shards, job_config, out, print_json
from pipeline.config import JobConfig
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.bench import Bench
    from pipeline.bench.measure import Spread

ASSETS = Path(__file__).parent / "assets"
SHARDS, SAMPLES = 4, 128  # where the user names none
MEANINGS = {
    "fetch": "bytes out of the store, as many streams as in a run",
    "tar": "bytes to samples, one thread",
    "decode": "samples to pixels, all cores",
    "encode": "pixels to tokens, the device",
    "write": "rows to Parquet, checked, one thread",
    "inspect": "QA of a part, one thread",
}


def main(
    job: Job = None,
    shards: Shards = None,
    model: Model = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each measurement (seconds).")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="So often everything is measured; ratios are within a round.")] = 3,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the roofline.", show_default=False, dir_okay=False)
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure each stage alone and all together, in this process, and say what bounds a run and how near it comes.

    Without --shards or --model: on photographs and the model that ship with the project. OUTPUT is not needed, and
    nothing is written but temporary files. Takes two minutes or so; do nothing else on the machine meanwhile.
    """
    if plot and not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot must be a file in a folder that is there, got {plot}")
    config = job_config(job, shards=shards, model=model, output=None, settings=settings)
    if not config.model.path:
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"path": str(ASSETS / "vq-f8-1024")})}
        )
    with _complete(config) as config:
        config.check_complete(needs_output=False)
        from pipeline.bench import bench, picture
        from pipeline.progress import for_stderr

        progress = for_stderr()
        try:
            found = bench(config, seconds=seconds, rounds=rounds, on_step=progress.count)
        finally:
            progress.close()
    _print(found)
    if plot:
        plot.write_text(picture(found), encoding="utf-8")
        out.print(f"plot: {plot}")
    if as_json:
        print_json(asdict(found))


@contextmanager
def _complete(config: JobConfig) -> Iterator[JobConfig]:
    """The configuration, with shards cut out of the shipped photographs if it names none."""
    if config.shards:
        yield config
        return
    from pipeline.shards.corpus import CorpusConfig, make_corpus

    with TemporaryDirectory(prefix="tokenmill-bench-") as folder:
        out.print(f"no --shards: cutting {SHARDS} x {SAMPLES} images from the shipped photographs")
        made = make_corpus(ASSETS, Path(folder), CorpusConfig(shards=SHARDS, samples=SAMPLES))
        yield config.model_copy(update={"shards": tuple(map(str, made))})


def _print(found: "Bench") -> None:
    """The figures for a person."""
    out.print(
        f"measured on {found.shard}: {found.bytes_per_image / 1e3:,.1f} kB an image, parts of {found.rows:,} rows"
    )
    out.print(
        f"{found.device}, {found.cores} cores of which {_range(found.free_cores, '.2f')} were free; "
        f"{found.image_size} px, decode {found.decode}, precision {found.precision}, batches of {found.batch_size}\n"
    )
    out.print(f"{'stage':9}{'alone':>38}{'images/s':>14}{'CPU ms/image':>14}{'share':>8}")
    for name, stage in found.stages.items():
        alone = f"{_range(stage.native, ',.0f')} {stage.unit}"
        costs = f"{stage.rate.median:>14,.1f}{stage.cpu_ms.median:>14.3f}{stage.share:>8.1%}"
        out.print(f"{name:9}{alone:>38}{costs}   {MEANINGS[name]}")
    together = f"{_range(found.end_to_end, ',.1f')} images/s"
    out.print(f"{'together':9}{together:>38}{found.end_to_end.median:>14,.1f}{found.end_to_end_cpu_ms.median:>14.3f}\n")
    modes = ", ".join(f"{mode} {rate:,.1f} images/s" for mode, rate in found.decode_modes.items())
    out.print(f"decode on one core: {modes}")
    for model in found.models:
        rates = ", ".join(f"{rate:,.1f} ({size})" for size, rate in model.rates.items())
        out.print(f"model {model.precision}: images/s (batch) {rates}; {model.agreement:.2%} of the tokens as exact")
    _print_verdict(found)


def _print_verdict(found: "Bench") -> None:
    most = f", most of all by {found.heaviest} ({found.stages[found.heaviest].share:.0%} of their time)"
    limit = f"the {found.limit}{most if found.limit == 'cores' else ''}"
    out.print(f"\nbound      {_range(found.bound, ',.1f')} images/s, set by {limit}")
    out.print(
        f"reached    {_range(found.fraction, '.0%')} of it: {_range(found.end_to_end, ',.1f')} images/s end to end"
    )
    out.print(f"device     busy {_range(found.device_busy, '.0%')} of the time", end="")
    needed = found.cores_per_device
    out.print("" if needed is None else f"; to be busy always it needs {needed:,.1f} cores")
    on_device = "" if found.device_memory is None else f", {found.device_memory / 1e6:,.0f} MB on the device"
    out.print(f"memory     {found.peak_memory / 1e6:,.0f} MB at most{on_device}")


def _range(spread: "Spread", form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"
