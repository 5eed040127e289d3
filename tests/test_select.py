"""What the user does not want: neither row nor reject, and in the accounts all the same."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import JobConfig, job_document, resolve
from pipeline.encoding import Precision
from pipeline.errors import Filtered, UsageError
from pipeline.images import ImageConfig
from pipeline.isolation import prepare_sample
from pipeline.messages import Identity
from pipeline.select import SelectConfig, Selection, keys_in, parse_condition
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokenize_shard import tokenize_shard
from pipeline.tokens.reader import read_footer
from pipeline.tokens.schema import PartFooter, TokenSpec
from pipeline.verify import verify
from tests.support.corpora import jpeg, write_shard
from tests.support.finished_run import Draft, FinishedRun
from tests.support.lines import production_line

DOCUMENT = {"aesthetic": 5.5, "width": 640, "ok": True, "license": "cc0", "deep": {"er": -1}, "none": None, "list": [1]}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("meta.aesthetic > 5", True),
        ("meta.aesthetic>5.5", False),
        ("meta.aesthetic >= 5.5", True),
        ("meta.width == 640.0", True),
        ("meta.width < 640", False),
        ("meta.width <= 640", True),
        ("meta.deep.er != 1", True),
        ("meta.deep.er < -0.5", True),
        ('meta.license == "cc0"', True),
        ('meta.license >= "cc"', True),
        ('meta.license != "cc0"', False),
        ("meta.ok == true", True),
        ("meta.ok == 1", False),
        ("meta.ok != false", True),
        ("meta.list == [1]", True),
        ("meta.absent != 1", False),
        ("meta.none != 1", False),
        ("meta.license > 5", False),
        ('meta.width > "5"', False),
        ("meta.width.deeper == 1", False),
    ],
)
def test_condition_on_the_sidecar(condition: str, holds: bool) -> None:
    assert parse_condition(condition).holds(DOCUMENT) is holds
    selection, data = Selection(SelectConfig(where=condition)), json.dumps(DOCUMENT).encode()
    assert selection.verdict("s", "k", {"json": data}) == (None if holds else Filtered(f"where {condition}"))


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"{",
        b"[1]",
        b"5",
        b"\xff",
        pytest.param(b'{"a":' * 100_000, id="nested too deeply"),
        pytest.param(b"1" * 5000, id="an integer that Python does not read"),
    ],
)
def test_sidecar_that_is_none(data: bytes | None) -> None:
    members = {} if data is None else {"json": data}
    selection = Selection(SelectConfig(where=("meta.a == 1",)))
    assert selection.verdict("s", "k", members) == Filtered("where meta.a == 1")


@pytest.mark.parametrize(
    ("condition", "complaint"),
    [
        ("aesthetic > 5", "must be like `meta.aesthetic > 5`"),
        ("meta > 5", "must be like"),
        ("meta.a", "must be like"),
        ("meta.a => 5", "must be like"),
        ("meta.a > five", "must be JSON .* got five"),
        ("meta.a > true", "> must be followed by a number or a text, got true"),
    ],
)
def test_condition_that_is_none(condition: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        resolve(settings=[f"select.where={json.dumps(condition)}"], environment={})


@pytest.mark.parametrize(
    ("rules", "broken"),
    [
        ({"min_side": 100}, None),
        ({"min_side": 101}, "min_side 101"),
        ({"min_pixels": 20000, "max_pixels": 20000, "max_aspect": 2}, None),
        ({"min_pixels": 20001}, "min_pixels 20001"),
        ({"max_pixels": 19999}, "max_pixels 19999"),
        ({"max_aspect": 1.99}, "max_aspect 1.99"),
        ({"min_side": 101, "max_aspect": 1}, "min_side 101"),
    ],
)
def test_rule_of_size(rules: dict[str, float], broken: str | None) -> None:
    for width, height in ((100, 200), (200, 100)):
        assert SelectConfig(**rules).size_rule(width, height) == broken


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("limit", [{"max_pixels": 99}, {"max_scan_pixels": 99}, {"min_side": 99}])
def test_unwanted_size_beyond_a_limit(form: str, limit: dict[str, int]) -> None:
    """The user's rule is asked first: what is not wanted is no reject."""
    file = io.BytesIO()
    Image.new("RGB", (10, 20)).save(file, form)
    image, members = ImageConfig(size=8, **limit), {"jpg": file.getvalue()}
    assert prepare_sample("k", members, image, select=SelectConfig(min_side=11)) == Filtered("min_side 11")


def identity_of(select: SelectConfig) -> dict[str, object]:
    found = Identity("w", {}, TokenSpec(8, 1, 1), "r", Selection.load(select, "json", Storage()).describe())
    return job_document(JobConfig(select=select), found, None, Precision.EXACT, 8)["identity"]


def test_choice_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("k1\nk2\n")
    (tmp_path / "b").write_text("k1\n")
    assert "select" not in identity_of(SelectConfig())
    assert identity_of(SelectConfig(min_side=9))["select"] == {"min_side": 9}
    by_list = [identity_of(SelectConfig(keys=str(tmp_path / name))) for name in "ab"]
    shutil.copy(tmp_path / "a", tmp_path / "c")
    assert by_list[0] != by_list[1]
    assert by_list[0] == identity_of(SelectConfig(keys=str(tmp_path / "c"))), "the list's content counts, not its name"


@pytest.mark.parametrize("listed", ["a", "b", ""])
@pytest.mark.parametrize(("kind", "prefix"), [("shards", "gcs://bucket/"), ("keys", "")])
def test_names_on_a_list(tmp_path: Path, kind: str, prefix: str, listed: str) -> None:
    """What is asked for is sample `a` of shard `a`."""
    (tmp_path / "list").write_text(f"{prefix}{listed}\n" if listed else "")

    def verdict(option: str) -> Filtered | None:
        selection = Selection.load(SelectConfig(**{option: str(tmp_path / "list")}), "json", Storage())
        return selection.verdict("gs://bucket/a", "a", {})

    assert verdict(kind) == (None if listed == "a" else Filtered(kind))
    assert verdict(f"without_{kind}") == (Filtered(f"without_{kind}") if listed == "a" else None)


def test_shard_on_a_list_by_a_relative_path(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("/data/0.tar\ndata/1.tar\n")
    with pytest.raises(UsageError, match=r"select\.shards must name shards by URL or absolute path, got 'data/1\.tar'"):
        Selection.load(SelectConfig(shards=str(tmp_path / "list")), "json", Storage())


def test_list_of_keys_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"select\.without_keys must be a text file with one key per line"):
        Selection.load(SelectConfig(without_keys=str(tmp_path / "x")), "json", Storage())


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a\nb/c\n", ["a", "b/c"]),
        ("a\r\n\r\nb", ["a", "b"]),
        ("\ufeffa\n", ["a"]),
        (" a \n", [" a "]),
        ("a\u2028b\x1cc\x85\n", ["a\u2028b\x1cc\x85"]),
        ("", []),
    ],
)
def test_keys_of_a_list(text: str, keys: list[str]) -> None:
    assert keys_in(text.encode()) == keys


def footer_of(tmp_path: Path, model: Path, samples: dict[str, dict[str, bytes]], select: SelectConfig) -> PartFooter:
    (shard,) = freeze(Storage(), [str(write_shard(tmp_path / "x.tar", samples))])
    with production_line(model, str(tmp_path / "out"), select=select) as line:
        counts = tokenize_shard(shard, line).counts
    footer = read_footer(Storage(), f"{tmp_path}/out/tokens/{shard.id}.parquet")
    assert footer.counts == counts
    assert counts.balanced()
    return footer


def test_each_rule_has_its_account(tmp_path: Path, tiny_model: Path) -> None:
    good = {"jpg": jpeg(1), "json": b'{"a": 9}'}
    samples = {f"k{i}": dict(good) for i in range(8)}
    samples["k1"]["json"] = b'{"a": 1}'
    samples["k2"]["jpg"] = jpeg(2, 20, 90)
    samples["k3"] = {"jpg": b"<html>", "json": b'{"a": 2}'}
    samples["k4"]["jpg"] = b"<html>"
    (tmp_path / "not").write_text("k5\n\nk9\n")
    select = SelectConfig(where="meta.a > 3", min_side=30, without_keys=str(tmp_path / "not"))
    footer = footer_of(tmp_path, tiny_model, samples, select)
    assert footer.filtered == {"where meta.a > 3": [1, 3], "min_side 30": [2], "without_keys": [5]}
    assert [reject.sample_index for reject in footer.rejects] == [4]
    assert (footer.counts.samples, footer.counts.tokenized, footer.counts.filtered) == (8, 3, 4)


def test_keys_alone(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "these").write_text("k2\nk0")
    select = SelectConfig(keys=str(tmp_path / "these"))
    footer = footer_of(tmp_path, tiny_model, {f"k{i}": {"jpg": jpeg(i)} for i in range(4)}, select)
    assert footer.filtered == {"keys": [1, 3]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> FinishedRun:
    """Of shard `a` the samples a1 and a4 are not wanted, of shard `b` none is."""
    folder = tmp_path_factory.mktemp("select")
    (folder / "not").write_text("a1\na4")
    run = FinishedRun(folder / "shards", folder / "output")
    (folder / "not-b").write_text(f"{run.source('b.tar.gz')}\n")
    run.build(tiny_model, select=SelectConfig(without_keys=str(folder / "not"), without_shards=str(folder / "not-b")))
    return run


def test_accounts_close_with_what_is_filtered(built: FinishedRun) -> None:
    result = verify(Storage(), str(built.output))
    assert result.ok, result.findings
    counted = [(one.samples, one.rows, one.rejects, one.filtered) for one in result.accounts]
    assert counted == [(6, 3, 1, 2), (4, 0, 0, 4), (0, 0, 0, 0)]
    assert read_footer(Storage(), str(built.part("b"))).filtered == {"without_shards": [0, 1, 2, 3]}
    assert pq.read_table(built.part())["sample_index"].to_pylist() == [0, 3, 5]


def forget(draft: Draft) -> None:
    draft.footer |= {"filtered": "", "filtered_bytes": 0}


def forget_and_count_so(draft: Draft) -> None:
    forget(draft)
    draft.set("counts", filtered=0, samples=4)


def row_of_a_filtered_sample(draft: Draft) -> None:
    draft.rows.append({**draft.rows[0], "sample_index": 4, "key": "a4"})


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (forget, ["unbalanced", "missing_samples"]),
        (forget_and_count_so, ["missing_samples"]),
        (row_of_a_filtered_sample, ["unbalanced", "duplicate_samples"]),
    ],
)
def test_filtered_sample_lost_or_twice_is_found(
    tmp_path: Path, built: FinishedRun, change: Callable[[Draft], None], kinds: list[str]
) -> None:
    shutil.copytree(built.output, tmp_path / "output")
    run = FinishedRun(built.shards, tmp_path / "output")
    run.edit(change)
    assert [finding.kind for finding in verify(Storage(), str(run.output)).findings] == kinds
