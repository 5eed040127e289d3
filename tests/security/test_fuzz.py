"""The fuzzer's corpus, and a few thousand steps away from it, in every run of the tests."""

import random

import pytest

from tests.security.fuzz import CORPUS, targets

# Metadata damaged by chance makes Pillow warn; the warnings are silenced in a worker, and are no matter here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

TARGETS = targets()
STEPS = 10_000
MOST_BYTES = 300_000  # of the whole corpus


def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """The data with one blow: a byte set, a piece cut out, doubled, or exchanged for one of another file."""
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    kind = chance.randrange(4)
    if kind == 0 and data:
        at = chance.randrange(len(data))
        return data[:at] + bytes([chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))]) + data[at + 1 :]
    piece = {1: b"", 2: data[start:end] * 2}.get(kind, other[start:end])
    return data[:start] + piece + data[end:]


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    files = corpus(name)
    assert len(files) > 40
    for data in files:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_steps_away_from_the_corpus(name: str) -> None:
    files, chance = corpus(name), random.Random(f"tokenmill {name}")
    for _ in range(STEPS):
        data = chance.choice(files)
        for _ in range(chance.randrange(1, 4)):
            data = mutated(data, chance.choice(files), chance)
        TARGETS[name](data)


def test_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_BYTES
