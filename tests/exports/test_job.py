"""An export as a job: each row once, whatever stopped it; the accounts; what is refused."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import RunFailed, UsageError
from pipeline.exports import FORMATS
from pipeline.exports.format import Unit
from pipeline.exports.job import ExportConfig, Exported, Receipt, Runner, Work, export, one_by_one, plan, write_unit
from pipeline.exports.source import open_source
from pipeline.storage import Storage
from pipeline.tokens.schema import TokenSpec
from tests.support.token_runs import make_run

Write = Callable[[Work, Unit], Receipt]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """3 views of each of 17 samples."""
    return make_run(tmp_path_factory.mktemp("run"), (10, 7), views=3, labelled=True)


def do(url: str, to: Path | str, layout: str = "bin", rows: int | None = 6, run: Runner = one_by_one) -> Exported:
    config = ExportConfig(format=layout, to=str(to), rows_per_file=rows)
    return export(open_source(Storage(), url), config, run)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_units_that_are_parts(tmp_path: Path) -> None:
    """One of each, the empty ones too: the same shard has the same number in every run."""
    run = make_run(tmp_path / "run", (4, 2, 3), views=2, rejects=frozenset({(1, 0), (1, 1), (2, 1)}))
    units = plan(open_source(Storage(), run), FORMATS["4m"](), None)
    assert [(unit.number, unit.of, unit.start, unit.stop) for unit in units] == [
        (0, 3, 0, 8),
        (1, 3, 8, 8),
        (2, 3, 8, 12),
    ]
    assert do(run, tmp_path / "to", "4m", None).rows == 12
    assert len(list((tmp_path / "to" / "tok_rgb").iterdir())) == 3
    units = plan(open_source(Storage(), run, view=1), FORMATS["4m"](), None)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 4), (4, 4), (4, 6)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 50, 51, 52, 1000])
def test_units_are_the_rows_cut_in_pieces(run: str, rows: int) -> None:
    source = open_source(Storage(), run)
    for layout in FORMATS.values():
        units = plan(source, layout(), rows)
        assert [place for unit in units for place in range(unit.start, unit.stop)] == list(range(51))
        assert [unit.number for unit in units] == list(range(units[0].of))
        assert not layout.samples_whole or all(unit.start % 3 == 0 for unit in units)


def interrupted_after(limit: int) -> Runner:
    """A runner that is interrupted when so many units are done."""

    def run(write: Write, work: Work, units: Sequence[Unit], /) -> Iterator[Receipt]:
        yield from one_by_one(write, work, units[:limit])
        raise KeyboardInterrupt

    return run


def test_interrupted_after_every_unit_and_resumed(run: str, tmp_path: Path) -> None:
    whole = do(run, tmp_path / "whole")
    for limit in range(whole.units):
        to = tmp_path / f"to-{limit}"
        with pytest.raises(KeyboardInterrupt):
            do(run, to, run=interrupted_after(limit))
        assert len(list(to.glob("_tokenmill/units/*.json"))) == limit
        assert not (to / "train.bin").exists()
        assert do(run, to) == whole
        assert files(to) == files(tmp_path / "whole")


def test_unit_that_died_before_its_receipt(run: str, tmp_path: Path) -> None:
    """Its files lie there already, and stay as they are."""
    do(run, tmp_path / "whole", "maskgit")
    do(run, tmp_path / "to", "maskgit")
    (tmp_path / "to" / "_tokenmill" / "units" / "000002.json").unlink()
    (tmp_path / "to" / "_tokenmill" / "_SUCCESS").unlink()
    before = (tmp_path / "to" / "00002.tar").stat().st_mtime_ns
    assert do(run, tmp_path / "to", "maskgit").rows == 51
    assert (tmp_path / "to" / "00002.tar").stat().st_mtime_ns == before
    assert files(tmp_path / "to") == files(tmp_path / "whole")


def test_killed_while_pieces_were_joined(run: str, tmp_path: Path) -> None:
    do(run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        do(run, tmp_path / "to", run=interrupted_after(2))
    for unit in plan(open_source(Storage(), run), FORMATS["bin"](), 6)[2:]:
        write_unit(Work(open_source(Storage(), run), FORMATS["bin"](), f"file://{tmp_path}/to"), unit)
    (tmp_path / "to" / "train.bin").write_bytes((tmp_path / "whole" / "train.bin").read_bytes())
    assert do(run, tmp_path / "to").rows == 51
    assert files(tmp_path / "to") == files(tmp_path / "whole")


def test_killed_when_the_pieces_were_gone(run: str, tmp_path: Path) -> None:
    do(run, tmp_path)
    whole = files(tmp_path)
    (tmp_path / "_tokenmill" / "_SUCCESS").unlink()
    assert do(run, tmp_path).rows == 51
    assert files(tmp_path) == whole
    (tmp_path / "_tokenmill" / "_SUCCESS").unlink()
    (tmp_path / "train.bin").write_bytes(whole["train.bin"][:-1])
    with pytest.raises(RunFailed, match="pieces: 18 files were written and 0 are there"):
        do(run, tmp_path)


def test_two_exports_at_the_same_moment(run: str, tmp_path: Path) -> None:
    do(run, tmp_path / "whole", "4m")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: do(run, tmp_path / "to", "4m"), range(4)))
    assert {result.rows for result in results} == {51}
    assert files(tmp_path / "to") == files(tmp_path / "whole")


def test_export_of_something_else_there(run: str, tmp_path: Path) -> None:
    do(run, tmp_path / "to")
    with pytest.raises(UsageError, match="rows_per_file: 6 there, 7 here"):
        do(run, tmp_path / "to", rows=7)
    with pytest.raises(UsageError, match="format: 'bin' there, 'mds' here"):
        do(run, tmp_path / "to", "mds")
    other = make_run(tmp_path / "other", (10, 8), views=3, labelled=True)
    with pytest.raises(UsageError, match="holds another export"):
        do(other, tmp_path / "to")


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("bin", "train.bin"),
        ("rar", "pretokenized.jsonl"),
        ("hf", "README.md"),
        ("llamagen", "imagenet16_codes/99.npy"),
        ("mds", "_tokenmill/units/000000.json"),
        ("maskgit", ".hidden"),
    ],
)
def test_place_that_is_not_empty(run: str, tmp_path: Path, layout: str, name: str) -> None:
    """Whatever is there, its readers could take it for the run's, or it could be lost."""
    place = tmp_path / "a [b] c*"
    (place / name).parent.mkdir(parents=True)
    (place / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"empty or new folder, got .*, which holds {name} and 0 more"):
        do(run, place, layout)
    assert files(tmp_path) == {f"a [b] c*/{name}": b"mine"}


def test_run_as_the_place_of_its_own_export(run: str) -> None:
    before = files(Path(run.removeprefix("file://")))
    with pytest.raises(UsageError, match="empty or new folder"):
        do(run, run, "hf")
    assert files(Path(run.removeprefix("file://"))) == before


@pytest.mark.parametrize(
    ("layout", "name"),
    [("maskgit", "00001.tar"), ("llamagen", "imagenet16_labels/3.npy"), ("rar", "pretokenized.jsonl")],
)
def test_foreign_file_put_there_meanwhile(run: str, tmp_path: Path, layout: str, name: str) -> None:
    """It is as long as the one in whose place it lies."""
    do(run, tmp_path / "whole", layout)
    with pytest.raises(KeyboardInterrupt):
        do(run, tmp_path / "to", layout, run=interrupted_after(0))
    foreign = tmp_path / "to" / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(bytes((tmp_path / "whole" / name).stat().st_size))
    before = foreign.read_bytes()
    with pytest.raises(UsageError, match=f"{name}: is not the file that this export would write"):
        do(run, tmp_path / "to", layout)
    assert foreign.read_bytes() == before


def test_accounts_that_do_not_close(run: str, tmp_path: Path) -> None:
    do(run, tmp_path, "maskgit")
    (tmp_path / "_tokenmill" / "_SUCCESS").unlink()
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(RunFailed, match="9 files were written and 10 are there"):
        do(run, tmp_path, "maskgit")
    (tmp_path / "x.tar").unlink()
    (tmp_path / "00003.tar").unlink()
    with pytest.raises(RunFailed, match="9 files were written and 8 are there"):
        do(run, tmp_path, "maskgit")
    receipt = tmp_path / "_tokenmill" / "units" / "000004.json"
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"rows": 5}))
    with pytest.raises(RunFailed, match="51 rows in the run, 50 exported"):
        do(run, tmp_path, "maskgit")


def test_runs_that_cannot_be_exported(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--format must be one of hf, llamagen"):
        do(run, tmp_path, "tfrecord")
    with pytest.raises(UsageError, match="--view must be"):
        open_source(Storage(), run, view=3)
    unfinished = make_run(tmp_path / "unfinished", (3,), finished=False)
    with pytest.raises(UsageError, match="not finished"):
        open_source(Storage(), unfinished)
    assert do_source(unfinished, tmp_path / "to").rows == 3


def do_source(run: str, to: Path) -> Exported:
    return export(open_source(Storage(), run, partial=True), ExportConfig(format="hf", to=str(to)))


def test_rows_that_are_counted_wrong(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS["bin"], "write", lambda *_: (5, {}))
    with pytest.raises(RunFailed, match="has 6 rows, and 5 were written"):
        do(run, tmp_path)


@pytest.mark.parametrize("layout", ["hf", "rar"])
def test_every_store(tmp_path: Path, store_url: str, layout: str) -> None:
    run = make_run(f"{store_url}/run", (9, 4), spec=TokenSpec(64, 2, 2), labelled=True)
    do(run, tmp_path / "local", layout, 5)
    do(run, f"{store_url}/to", layout, 5)
    with pytest.raises(UsageError, match=r"which holds README\.md and \d+ more files"):
        do(run, f"{store_url}/run", layout, 5)
    for name, data in files(tmp_path / "local").items():
        assert Storage().read(f"{store_url}/to/{name}") == data
