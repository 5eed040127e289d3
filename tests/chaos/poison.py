"""A corpus with poison in it: marked images, harmless until faults are planned that strike at the marks."""

from pathlib import Path

from tests.support.corpora import sample, write_shard

SHARDS, SAMPLES = 12, 40
PLACES = {  # kind of poison -> its shard and sample
    "segv": (3, 5),
    "hang": (4, 20),
    "devour": (5, 39),
    "freeze": (2, 0),
    "segv early": (0, 3),  # early: among the images that calibrate the run
    "hang early": (0, 4),
}


def write_marked_corpus(folder: Path) -> Path:
    """12 shards of 40 samples, each with its mark if it has one."""
    folder.mkdir(parents=True)
    marks = {place: mark(kind) for kind, place in PLACES.items()}
    for shard in range(SHARDS):
        samples = {key(shard, index): sample(shard, index) for index in range(SAMPLES)}
        for index in range(SAMPLES):
            if (shard, index) in marks:
                members = samples[key(shard, index)]
                members["jpg"] = with_comment(members["jpg"], marks[shard, index].encode())
        write_shard(folder / f"{shard:05d}.tar", samples)
    return folder


def key(shard: int, index: int) -> str:
    """The key of a sample."""
    return f"{shard:03d}{index:04d}"


def mark(kind: str) -> str:
    """What the image of this kind of poison holds, and no other."""
    return f"poison: {kind};"


def with_comment(jpeg: bytes, text: bytes) -> bytes:
    """The JPEG with a comment of at most 65,533 bytes after its start marker."""
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]
