"""`tokenmill demo`: the whole job on the photographs and the model that ship with the project."""

import glob
from pathlib import Path
from typing import Annotated

import typer

from jobs.options import out
from pipeline.errors import FingerprintMismatch, UsageError
from pipeline.images import ImageConfig

ASSETS = Path(__file__).parent / "assets"
SHARDS, SAMPLES = 4, 64
PICTURES = 8


def main(
    folder: Annotated[Path, typer.Option(help="Folder for shards, tokens and the picture.")] = Path("demo"),
    size: Annotated[int, typer.Option(min=8, help="Side of the images (pixels, a multiple of 8).")] = 256,
) -> None:
    """Make a small corpus, tokenize it, verify it, decode some of it back; about a minute on a laptop."""
    from pipeline.config import resolve
    from pipeline.driver import run
    from pipeline.progress import for_stderr
    from pipeline.storage import Storage
    from pipeline.verify import verify

    shards, tokens = _corpus(folder / "shards"), folder / "tokens"
    specs = [glob.escape(str(shard)) for shard in shards]  # the folder may be called [x]
    flags = {"shards": specs, "model": str(ASSETS / "vq-f8-1024"), "output": str(tokens)}
    config = resolve(flags={**flags, "image.size": size}, environment={})
    progress = for_stderr()
    try:
        result = run(config, progress)
    except FingerprintMismatch as error:
        raise UsageError(
            f"{tokens} holds the tokens of another demo (another --size, or another version of Tokenmill), and a "
            f"dataset must not mix two; give another --folder, or delete {tokens}"
        ) from error
    finally:
        progress.close()
    out.print(result.message)
    out.print(str(result.rates))
    if result.exit_code:
        raise typer.Exit(int(result.exit_code))
    checked = verify(Storage(), str(tokens))
    for finding in checked.findings:
        out.print(f"{finding.kind.value}: {finding.shard}: {finding.message}")
    if not checked.ok:
        raise typer.Exit(3)
    rows = sum(account.rows for account in checked.accounts)
    out.print(f"verified: every sample of {len(checked.accounts)} shards is accounted for, once: {rows} rows")
    picture = folder / "reconstructions.png"
    _picture(tokens, config.image, picture)
    out.print(f"picture:  {picture}  (originals above, decoded from the stored tokens below)")
    out.print("\nread the tokens:\n")
    out.print("    import pyarrow.dataset as ds, numpy as np")
    out.print(f'    table = ds.dataset("{tokens}/tokens").to_table()')
    out.print('    tokens = np.stack(table["tokens"].to_numpy())     # [rows, h * w], uint16')


def _corpus(folder: Path) -> list[Path]:
    """The demo's shards, made once from the shipped photographs."""
    from pipeline.shards.corpus import CorpusConfig, make_corpus

    config = CorpusConfig(shards=SHARDS, samples=SAMPLES, min_side=256, max_side=768)
    wanted = [folder / f"{shard:05d}.tar" for shard in range(SHARDS)]
    if all(path.exists() for path in wanted):
        return wanted
    out.print(f"cutting {SHARDS} x {SAMPLES} images from the shipped photographs into {folder}")
    return make_corpus(ASSETS, folder, config)


def _picture(tokens: Path, image: ImageConfig, path: Path) -> None:
    from pipeline.model import VQModel
    from pipeline.output import Output
    from pipeline.qa.samples import read_back
    from pipeline.qa.sheet import contact_sheet
    from pipeline.storage import Storage

    storage = Storage()
    output = Output(storage, str(tokens))
    parts, model = output.parts(), VQModel.from_pretrained(ASSETS / "vq-f8-1024")
    samples = []
    for shard in output.manifest():
        rows = range(0, SAMPLES, SAMPLES * SHARDS // PICTURES)
        samples += read_back(storage, shard, parts[shard.id].url, model, image, rows)
    contact_sheet(samples, path)
