"""What several tests stand on: a tiny real model and a small real corpus, made once per session."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.corpora import write_corpus
from tests.support.models import save_tiny_model
from tests.support.s3 import s3, store_url

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels then run on a CPU
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # no idle process for every core of each Ray

__all__ = ["s3", "store_url"]  # fixtures
LONGEST = ("test_store_faults.py", "test_s3.py", "test_submit.py", "test_readme.py", "test_interruptions.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take a minute or more: a worker that gets one of them last keeps the others waiting."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder for all processes of the session: the first one makes it, the others wait for it."""
    top = tmp_path_factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        there, done = top / name, top / f"{name}.done"
        with FileLock(top / f"{name}.lock"):
            if not done.exists():
                there.mkdir()
                make(there)
                done.touch()
        return there

    return folder


@pytest.fixture(scope="session")
def tiny_model(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A real VQModel of random weights: f4, 64 codes, a few thousand parameters."""
    return made_once("model", save_tiny_model)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 shards x 10 real JPEGs of odd sizes, with captions and sidecars."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards=4, samples=10)
