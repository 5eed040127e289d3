"""What several tests stand on: a tiny real model and a small real corpus, made once per session."""

from pathlib import Path

import pytest

from tests.support.corpora import write_corpus
from tests.support.models import save_tiny_model
from tests.support.s3 import s3, store_url

__all__ = ["s3", "store_url"]  # fixtures


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real VQModel of random weights: f4, 64 codes, a few thousand parameters."""
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 shards x 10 real JPEGs of odd sizes, with captions and sidecars."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards=4, samples=10)
