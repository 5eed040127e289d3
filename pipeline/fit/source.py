"""Where the images of a training come from: shards, or a folder of image files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Reject, UsageError
from pipeline.fit.crops import UINT8
from pipeline.images import ImageConfig, find_image, prepare
from pipeline.images.decode import decode
from pipeline.images.reasons import BadImage
from pipeline.shards.manifest import freeze
from pipeline.shards.tar import TarReader
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Shards (specs as `tokenmill run` takes them) or a folder; what cannot be decoded is left out.

    Raises:
        UsageError: both are given, or neither, or there is no such folder.
    """

    shards: tuple[str, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        if bool(self.shards) == (self.folder is not None):
            raise UsageError("fit needs either --shards or --images")
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"{self.folder}: no such folder")

    def images(self) -> Iterator[UINT8]:
        """Upright RGB images, uint8 [H, W, 3]."""
        for data in self._files():
            with suppress(BadImage):
                yield decode(data, ImageConfig()).pixels()

    def squares(self, side: int) -> Iterator[UINT8]:
        """What a run of `image.size` = `side` would show the model: uint8 [side, side, 3]."""
        for data in self._files():
            prepared = prepare(data, ImageConfig(size=side))
            if not isinstance(prepared, Reject):
                yield prepared.views[0].pixels

    def digest(self) -> str:
        """Changes with names and sizes of the files, or shards; none is read. A copy in another place has the same."""
        if self.folder is not None:
            told = [[path.name, path.stat().st_size] for path in _paths(self.folder)]
        else:
            told = [[shard.url.rpartition("/")[2], shard.size] for shard in freeze(Storage(), self.shards)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _files(self) -> Iterator[bytes]:
        if self.folder is not None:
            return (path.read_bytes() for path in _paths(self.folder))
        return self._members()

    def _members(self) -> Iterator[bytes]:
        storage = Storage()
        for shard in freeze(storage, self.shards):
            blob = shard.blob()
            with storage.stream(blob) as stream:
                for sample in TarReader(stream, url=shard.url, size=blob.size):
                    found = find_image(sample.members)
                    if not isinstance(found, Reject):
                        yield found


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
