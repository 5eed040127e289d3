"""Small corpora of real JPEGs, with or without faults."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 96, height: int = 80) -> bytes:
    """A JPEG of smooth random colours: compresses like a photograph, differs with the seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def sample(shard: int, index: int) -> dict[str, bytes]:
    """Members of one sample by extension."""
    seed = 1000 * shard + index
    data = jpeg(seed, 64 + seed % 61, 64 + seed % 47)
    meta = json.dumps({"aesthetic": seed % 10, "url": f"https://example.org/{seed}"})
    return {"jpg": data, "txt": f"caption {seed}".encode(), "cls": str(seed % 7).encode(), "json": meta.encode()}


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """One USTAR shard of `samples`: key -> extension -> bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_corpus(folder: Path, *, shards: int, samples: int) -> Path:
    """`shards` good shards of `samples` samples each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = {f"{shard:03d}{index:04d}": sample(shard, index) for index in range(samples)}
        write_shard(folder / f"{shard:05d}.tar", members)
    return folder
