"""Where values come from, and what a mistake in them says."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.config import JobConfig, describe_options, job_document, precision_of, resolve
from pipeline.encoding import Precision
from pipeline.errors import UsageError
from pipeline.messages import Identity
from pipeline.tokens.schema import TokenSpec

FILE = """
shards: [a.tar, b.tar]
model: my/model
output: {url: here, row_group_rows: 100}
image: {size: 128, recipe: pad}
limits: {max_attempts: 5}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(FILE)
    return path


def test_flags_win_over_settings_over_environment_over_file(job: Path) -> None:
    environment = {"TOKENMILL_IMAGE__SIZE": "64", "TOKENMILL_LIMITS__MAX_ATTEMPTS": "7", "TOKENMILL_OUTPUT": "there"}
    settings, flags = ["image.size=32", "limits.max_attempts=9"], {"image.size": 16, "model": None}
    found = resolve(job, settings=settings, flags=flags, environment=environment)
    assert (found.image.size, found.limits.max_attempts, found.output.url) == (16, 9, f"file://{Path.cwd()}/there")
    assert found.image.recipe == "pad"
    assert (found.model.path, found.output.row_group_rows, found.shards) == ("my/model", 100, ("a.tar", "b.tar"))


def test_defaults_need_shards_model_and_output_only() -> None:
    found = resolve(flags={"shards": ["x.tar"], "model": "m", "output": "o"}, environment={})
    found.check_complete()
    assert found == JobConfig(shards=["x.tar"], model="m", output=f"file://{Path.cwd()}/o")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("imgae: {size: 64}", "unknown option 'imgae'; did you mean 'image'"),
        ("image: {sise: 64}", "unknown option 'image.sise'; did you mean 'image.size'"),
        ("cluster: {in_flight: 2}", "did you mean 'cluster.shards_in_flight'"),
        ("image: {size: big}", "image.size: "),
        ("image: {recipe: crop}", "image.recipe: "),
        ("model: {precision: half}", "model.precision"),
        ("model: {batch_size: 0}", "model.batch_size must be at least 1 or auto, got 0"),
        ("storage: {options: {secret: x}}", "must not hold credentials, got secret"),
        ("[1, 2]", "must be a mapping of options, got list"),
        ("a: [", "no valid YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, file: str, says: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(file)
    with pytest.raises(UsageError) as error:
        resolve(path, environment={})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("image.sizee=64", "--set image.sizee: unknown option 'image.sizee'; did you mean 'image.size'?"),
        ("batchsize=4", "did you mean 'model.batch_size'"),
        ("zzz=1", "lists all options"),
        ("image.size", "--set must be KEY=VALUE"),
    ],
)
def test_mistakes_in_a_setting(setting: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(settings=[setting], environment={})
    assert says in str(error.value)


def test_mistake_in_the_environment() -> None:
    with pytest.raises(UsageError, match=r"TOKENMILL_IMAGE__SISE: unknown option 'image.sise'"):
        resolve(environment={"TOKENMILL_IMAGE__SISE": "64"})


@pytest.mark.parametrize("content", ["output: über".encode("latin-1"), b"\x89PNG\r\n\x1a\n\0", b"seed: 2026-13-01"])
def test_file_that_is_no_text_or_no_yaml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"job\.yaml: no valid YAML"):
        resolve(tmp_path / "job.yaml", environment={})


def test_missing_file() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(Path("no-such-job.yaml"), environment={})


def test_incomplete_job_names_what_lacks() -> None:
    with pytest.raises(UsageError, match="names no model and no output; give --model and --output"):
        resolve(flags={"shards": ["x"]}, environment={}).check_complete()


def test_every_option_is_described_with_its_default() -> None:
    options = {key: (default, text) for key, default, text in describe_options()}
    assert all(text for _, text in options.values())
    assert options["image.size"][0] == "256"
    assert {"shards", "output.url", "model.batch_size", "limits.drain_seconds", "storage.options"} <= set(options)


@pytest.mark.parametrize(("given", "fixed"), [("auto", None), ("fp16", Precision.FP16)])
def test_precision_is_fixed_unless_it_is_auto(given: str, fixed: Precision | None) -> None:
    assert resolve(settings=[f"model.precision={given}"], environment={}).model.fixed_precision is fixed


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", list(Precision))
def test_precision_of_a_job_is_read_back(precision: Precision, compiled: bool) -> None:
    config = JobConfig(model={"path": "m", "compile": compiled})
    document = job_document(config, Identity("w", {}, TokenSpec(8, 1, 1), "pillow-13"), None, precision, 8)
    assert precision_of(document) is precision


def test_precision_of_a_damaged_job() -> None:
    with pytest.raises(UsageError, match="must be one of exact, tf32, bf16, fp16, got fp4"):
        precision_of({"identity": {"precision": "fp4"}})


def test_local_paths_are_made_absolute_for_actors_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vq").mkdir()
    found = resolve(flags={"model": "vq", "output": "out/../tokens"}, environment={})
    assert (found.model.path, found.output.url) == (str(tmp_path / "vq"), f"file://{tmp_path}/tokens")
    assert resolve(flags={"model": "org/name", "output": "s3://b/x/"}, environment={}).model.path == "org/name"


def test_empty_section_of_a_file_takes_settings(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("image:\n")
    assert resolve(tmp_path / "job.yaml", settings=["image.size=64"], environment={}).image.size == 64


@pytest.mark.parametrize(
    ("setting", "same"), [("tar.max_members=5", True), ("limits.max_attempts=5", True), ("image.size=64", False)]
)
def test_fingerprint_holds_only_what_changes_tokens(setting: str, same: bool) -> None:
    found = Identity("w", {}, TokenSpec(8, 1, 1), "pillow-13")
    configs = resolve(environment={}), resolve(settings=[setting], environment={})
    plain, changed = (job_document(config, found, None, Precision.EXACT, 8)["fingerprint"] for config in configs)
    assert (plain == changed) is same


def test_job_document_holds_no_credentials() -> None:
    secret = "s3://KEY:SECRET@bucket/x"
    config = JobConfig(shards=[secret], model=secret, output=secret)
    found = Identity("w", {}, TokenSpec(8, 1, 1), "pillow-13")
    written = json.dumps(job_document(config, found, None, Precision.EXACT, 8))
    assert "SECRET" not in written
    assert "KEY" not in written
    assert "s3://bucket/x" in written


@pytest.mark.parametrize("actors", ["4..2", "0", "x", "1..", "2.5"])
def test_wrong_numbers_of_actors(actors: str) -> None:
    with pytest.raises(UsageError, match=r"cluster\.actors"):
        resolve(settings=[f"cluster.actors={actors}"], environment={})


@pytest.mark.parametrize(("actors", "range_"), [("3", (3, 3)), ("1..8", (1, 8)), ("null", None)])
def test_numbers_of_actors(actors: str, range_: tuple[int, int] | None) -> None:
    assert resolve(settings=[f"cluster.actors={actors}"], environment={}).cluster.actor_range == range_


@pytest.mark.parametrize(
    ("output", "shards", "stall", "refused"),
    [
        ("s3://b/out", "x.tar", 180, True),
        ("s3://b/out", "x.tar", 181, False),
        ("out", "s3://b/x.tar", 180, True),
        ("out", "@s3://b/list.txt", 180, True),
        ("out", "x.tar", 61, False),
    ],
)
def test_requests_are_given_up_before_their_attempt(output: str, shards: str, stall: float, refused: bool) -> None:
    flags = {"output": output, "shards": [shards], "model": "m", "limits.stall_seconds": stall}
    config = resolve(flags=flags, environment={})
    says = r"limits\.stall_seconds must be above storage\.retry_seconds \+ storage\.stall_seconds \(180\).*got 180"
    with pytest.raises(UsageError, match=says) if refused else nullcontext():
        config.check_complete()


@pytest.mark.parametrize(
    ("scratch", "found"),
    [("/fast/disk", "/fast/disk"), ("~/x", str(Path.home() / "x")), ("x", str(Path.cwd() / "x")), ("null", "None")],
)
def test_scratch_is_an_absolute_path(scratch: str, found: str) -> None:
    assert str(resolve(settings=[f"cluster.scratch={scratch}"], environment={}).cluster.scratch) == found


def test_scratch_on_an_object_store() -> None:
    with pytest.raises(UsageError, match=r"cluster\.scratch must be a folder on a local disk, got s3://b/x"):
        resolve(settings=["cluster.scratch=s3://b/x"], environment={})
