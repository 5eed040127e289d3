"""One actor without Ray: what it does before its first shard."""

import pickle
from io import BytesIO
from pathlib import Path

import pytest

from pipeline.config import resolve
from pipeline.encoding import Precision
from pipeline.errors import UsageError
from pipeline.messages import ShardReport, Task
from pipeline.schedule import Failure, Kind
from pipeline.scratch import PREFIX
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.worker import Worker
from tests.support.corpora import jpeg, write_shard


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def worker(tmp_path: Path, tiny_model: Path, scratch: Path) -> Worker:
    """An actor with its model loaded."""
    return loaded(tiny_model, tmp_path / "out", **{"cluster.scratch": str(scratch)})


def loaded(model: Path, output: Path, **flags: object) -> Worker:
    config = resolve(flags={"model": str(model), "output": str(output), "image.size": 32, **flags}, environment={})
    worker = Worker(config, 1, "cpu")
    worker.load()
    return worker


def test_start_takes_away_what_a_dead_actor_left(worker: Worker, scratch: Path) -> None:
    left = scratch / (PREFIX + "0" * 32)
    left.mkdir(parents=True)
    (left / "x.parquet").write_bytes(bytes(1000))
    worker.start("f" * 64, 2, Precision.EXACT)
    assert list(scratch.iterdir()) == []


def test_parts_are_drafted_on_the_scratch_disk(
    worker: Worker, scratch: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted = []

    class Watching(Storage):
        def create(self, url: str, source: Path) -> None:
            drafted.append(source)
            super().create(url, source)

    monkeypatch.setattr(worker, "_storage", Watching())
    worker.start("f" * 64, 2, Precision.EXACT)
    [shard] = freeze(Storage(), [str(corpus / "00000.tar")])
    assert isinstance(worker.tokenize(Task(shard, 1)), ShardReport)
    assert [path.parent.parent for path in drafted] == [scratch]
    assert list(scratch.iterdir()) == []


def test_limits_of_a_tar(tmp_path: Path, tiny_model: Path, corpus: Path) -> None:
    flags = {"model": str(tiny_model), "output": str(tmp_path / "out"), "image.size": 32}
    worker = Worker(resolve(flags=flags, settings=["tar.max_member_bytes=500"], environment={}), 1, "cpu")
    worker.load()
    worker.start("f" * 64, 2, Precision.EXACT)
    outcome = worker.tokenize(Task(freeze(Storage(), [str(corpus / "00000.tar")])[0], 1))
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.reason) == (Kind.TASK, "limit_exceeded")
    assert "over tar.max_member_bytes=500; raise the limit" in outcome.message


def test_scratch_that_cannot_be_written(worker: Worker, scratch: Path) -> None:
    scratch.write_bytes(b"a file")
    with pytest.raises(UsageError, match=r"cluster\.scratch must be a folder on a local disk .*/scratch on .*exists"):
        worker.start("f" * 64, 2, Precision.EXACT)


def test_driver_needs_no_torch_to_read_what_an_actor_tells(worker: Worker, corpus: Path) -> None:
    modules: set[str] = set()

    class Watching(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            modules.add(module)
            return super().find_class(module, name)

    [shard] = freeze(Storage(), [str(corpus / "00000.tar")])
    calibration = worker.measure([shard], 2)
    agreement = worker.start("f" * 64, 2, Precision.EXACT)
    told = (worker.load(), calibration, agreement, worker.tokenize(Task(shard, 1)))
    assert Watching(BytesIO(pickle.dumps(told))).load()[1] == calibration
    assert "pipeline.messages" in modules
    assert not [module for module in modules if module.partition(".")[0] == "torch"]


@pytest.mark.parametrize(("mode", "least", "most"), [("exact", 1, 1), ("tensor", 0.9, 1), ("fast", 0.3, 0.99)])
def test_agreement_of_a_decode_mode_is_measured_at_the_start(
    tmp_path: Path, tiny_model: Path, mode: str, least: float, most: float
) -> None:
    shard = write_shard(tmp_path / "x.tar", {f"k{i}": {"jpg": jpeg(i, 90, 75)} for i in range(4)})
    calibration = loaded(tiny_model, tmp_path, **{"image.decode": mode}).measure(freeze(Storage(), [str(shard)]), 2)
    assert calibration is not None
    assert least <= calibration.decode_agreement <= most
