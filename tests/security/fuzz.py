"""What any bytes must not do to the tar reader and to the decode chain, and a coverage-guided search for such bytes.

    python -m tests.security.fuzz tar   [options of libFuzzer] [folders]
    python -m tests.security.fuzz image [options of libFuzzer] [folders]

Needs atheris (Linux). `make fuzz` starts from the corpus in `tests/security/corpus`, which the normal tests replay: for
every line and branch that some file reached, the smallest such file. New inputs go to the first folder given; one that
breaks something is left where `-artifact_prefix` says, and belongs into the corpus once the fault is mended.
"""

import gzip
import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

Target = Callable[[bytes], None]


def targets() -> dict[str, Target]:
    """The things that are tried, by name. Imports here, so that atheris can watch what is imported."""
    from pipeline.errors import Reject, ShardError
    from pipeline.images import ImageConfig, configure_pillow, prepare
    from pipeline.shards.tar import TarLimits, TarReader
    from pipeline.shards.tar_stream import GZIP_MAGIC, ZSTD_MAGIC, ZSTD_SKIPPABLE_MAGIC

    small = ImageConfig(size=16, max_pixels=1_000_000, max_scan_pixels=10_000_000, max_bytes=1 << 20)
    tight = TarLimits(max_member_bytes=1 << 16, max_sample_bytes=1 << 17, max_members=1000, max_padding_bytes=1 << 20)
    configure_pillow()

    def read(data: bytes, size: int | None) -> list[tuple[int, str, dict[str, bytes]]] | None:
        reader = TarReader(io.BytesIO(data), url="s3://bucket/fuzzed.tar", size=size, limits=tight)
        try:
            samples = list(reader)
        except ShardError:
            return None
        assert reader.stats.bytes_read == len(data), "a sound shard is read to its end"
        assert reader.stats.samples == len(samples)
        return [(sample.index, sample.key, sample.members) for sample in samples]

    def tar(data: bytes) -> None:
        """A shard is read or refused by name, the same way each time; what holds for it holds for its gzip file."""
        samples = read(data, len(data))
        assert samples == read(data, len(data))
        assert read(data + b"x", len(data)) is None, "longer than the object"
        assert read(data, len(data) + 1) is None, "shorter than the object"
        if samples is None:
            return
        assert [index for index, _, _ in samples] == list(range(len(samples)))
        assert len({key for _, key, _ in samples}) == len(samples)
        if not data.startswith(GZIP_MAGIC) and data[1:4] not in (ZSTD_MAGIC[1:], ZSTD_SKIPPABLE_MAGIC):
            packed = gzip.compress(data, compresslevel=1)
            assert read(packed, len(packed)) == samples

    def image(data: bytes) -> None:
        """An image gives pixels or a reject with a reason, the same each time."""
        outcome, again = prepare(data, small), prepare(data, small)
        if isinstance(outcome, Reject):
            assert outcome.reason != "internal", outcome.detail
            assert outcome == again
            assert 0 < len(outcome.detail) <= 200
        else:
            assert outcome.views[0].pixels.shape == (16, 16, 3)
            assert not isinstance(again, Reject)
            assert (outcome.views[0].pixels == again.views[0].pixels).all()

    return {"tar": tar, "image": image}


def main(arguments: list[str]) -> None:
    """Search until something breaks or the time is over."""
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["pipeline.shards", "pipeline.images", "PIL", "tarfile"]):
        target = targets()[arguments[1]]
    atheris.Setup([arguments[0], *arguments[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
