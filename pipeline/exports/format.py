"""What a format is: how many rows go into one unit, how a unit is written, and what stands beside the units."""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.exports.source import Source

if TYPE_CHECKING:
    from webdataset import TarWriter

Note = dict[str, Any]  # what a unit tells those who make the index; JSON


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows [start, stop) of the sequence: one of `of` pieces of work, which becomes files of its own."""

    number: int
    of: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Format(ABC):
    """One layout on disk.

    Args:
        name: of the model, where names of files hold it; if empty, the one in the run's job.json.

    Attributes:
        samples_whole: all views of a sample go into one unit.
        unit_per_part: a unit is a part of the run, if the user does not say.
        unit_rows: rows of a unit, if the user does not say.
        joins: name of a file -> pattern of the units' files that it is made of, in order; these are then removed.
        advice: what the user must know before training on it.
    """

    samples_whole: ClassVar[bool] = False
    unit_per_part: ClassVar[bool] = False
    unit_rows: ClassVar[int] = 10_000
    joins: ClassVar[Mapping[str, str]] = MappingProxyType({})
    advice: ClassVar[str] = ""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def check(self, source: Source) -> None:  # noqa: B027 - some formats take every run
        """See that the run can be written in this format.

        Raises:
            UsageError: it cannot; the message says why and what to do.
        """

    def rows_per_unit(self, source: Source) -> int:  # noqa: ARG002 - some formats ask it
        """Rows of a unit, if the user does not say."""
        return self.unit_rows

    @abstractmethod
    def write(self, source: Source, unit: Unit, folder: Path) -> tuple[int, Note]:
        """Write the files of a unit into a local folder, under the names that they will have in the export.

        The same unit gives the same bytes each time.

        Returns:
            How many rows were written, and what `finish` needs to know of them.

        Raises:
            UsageError: a row cannot be written in this format.
        """

    def finish(self, source: Source, notes: Sequence[Note]) -> Mapping[str, bytes]:  # noqa: ARG002
        """The small files that stand beside the units, by name.

        Args:
            source: the run.
            notes: of all units, in order.
        """
        return {}


def make_file(folder: Path, name: str) -> Path:
    """The path of a file to be written, in a folder that is there."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def text_of(row: Mapping[str, Any]) -> bytes:
    """The caption of a row; empty where there is none."""
    return (row.get("caption") or "").encode()


def npy(array: npt.NDArray[Any]) -> bytes:
    """An array as an `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tar_writer(path: Path) -> "TarWriter":
    """A writer of WebDataset tars whose bytes depend on the samples alone: members as bytes, no times, no users."""
    from webdataset import TarWriter  # it imports torch, which the other formats do without

    return TarWriter(str(path), mtime=0, user="", group="", encoder=False)


def key_of(row: int) -> str:
    """The key of a row in a tar: its number in the export, since views share a key, and keys of shards may be equal."""
    return f"{row:09d}"
