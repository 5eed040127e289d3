"""What the tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fit.cases import save_photographs


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only cost time on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four pictures."""
    return save_photographs(tmp_path_factory.mktemp("fit") / "photos")


@pytest.fixture(scope="package")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pictures that are not among the four."""
    return save_photographs(tmp_path_factory.mktemp("fit") / "others", count=2, seed=1)
