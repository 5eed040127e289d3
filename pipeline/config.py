"""The configuration of a job: the sections of all rooms in one document, and where their values come from.

Flags win over `--set a.b=value`, that over the environment (`TOKENMILL_A__B`), that over the YAML file. Every section
is defined, documented and validated beside its owner; here they are only composed.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.encoding import ModelConfig, Precision
from pipeline.errors import UsageError
from pipeline.fingerprint import fingerprint, identity
from pipeline.images import ImageConfig, describe
from pipeline.limits import LimitsConfig
from pipeline.messages import Calibration, Identity
from pipeline.progress import LogConfig
from pipeline.qa.config import QaConfig
from pipeline.select import LISTS, SelectConfig
from pipeline.shards.tar import TarLimits
from pipeline.storage import Storage, StorageConfig
from pipeline.tokens.schema import ColumnsConfig
from pipeline.tokens.writer import OutputConfig
from pipeline.urls import canonical, join, local_path, redact, scheme_of

_COMPILED = "+compile"  # torch.compile changes the last bits, so it is part of the precision's name
ENVIRONMENT_PREFIX = "TOKENMILL_"
SHORTHANDS = {"model": "path", "output": "url"}  # `output: s3://...` stands for `output: {url: s3://...}`


class ClusterConfig(BaseModel):
    """Where actors run and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = Field(None, description="address of a Ray cluster (auto, host:port); null starts Ray here")
    actors: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        pattern=r"^[1-9]\d*(\.\.[1-9]\d*)?$",
        description="actors, n or min..max: they join as the cluster grows; null is one per GPU, or one on a CPU",
    )
    gpus_per_actor: float | None = Field(
        None, ge=0, le=1, description="GPUs per actor, at most 1; null is 1 where there are GPUs"
    )
    cpus_per_actor: int | None = Field(
        None, ge=1, description="decode threads (on a CPU also model threads) per actor; null shares the cores evenly"
    )
    shards_in_flight: int = Field(2, ge=1, description="shards an actor works on at once, so that no device waits")
    decode_actors: int = Field(
        0, ge=0, description="actors without a GPU that fetch and decode shards for those with one, on nodes with cores"
    )
    cpus_per_decode_actor: int = Field(1, ge=1, description="decode threads of each of them")
    scratch: Path | None = Field(
        None,
        description="folder for unfinished parts, on a local disk of each node; null is the system's temporary folder",
    )

    price_per_actor_hour: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="what an actor costs, for the report (your currency per hour)"
    )

    @field_validator("scratch", mode="before")
    @classmethod
    def _absolute(cls, scratch: Any) -> Any:
        if not isinstance(scratch, str):
            return scratch
        path = local_path(scratch)
        if path is None:
            raise ValueError(f"cluster.scratch must be a folder on a local disk, got {scratch}")
        return path

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """(fewest, most) actors, None if not given."""
        if self.actors is None:
            return None
        low, _, high = self.actors.partition("..")
        return int(low), int(high or low)

    @model_validator(mode="after")
    def _actors_in_order(self) -> Self:
        if self.actor_range and self.actor_range[0] > self.actor_range[1]:
            raise ValueError(f"cluster.actors must be min..max with min at most max, got {self.actors}")
        return self


class JobConfig(BaseModel):
    """All that a run is told. Frozen; `resolve` composes it from file, environment and flags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: tuple[str, ...] = Field((), description="input shards: URLs, paths, braces, globs, folders, @list.txt")
    output: OutputConfig = OutputConfig()
    model: ModelConfig = ModelConfig()
    image: ImageConfig = ImageConfig()
    columns: ColumnsConfig = ColumnsConfig()
    select: SelectConfig = SelectConfig()
    cluster: ClusterConfig = ClusterConfig()
    limits: LimitsConfig = LimitsConfig()
    tar: TarLimits = TarLimits()
    storage: StorageConfig = StorageConfig()
    qa: QaConfig = QaConfig()
    log: LogConfig = LogConfig()
    seed: int = Field(0, ge=0, description="of recipes that cut by lot (4m, amused); part of the fingerprint for them")

    @model_validator(mode="after")
    def _ranges_match(self) -> Self:
        expected, given = self.image.facts.value_range, self.model.value_range
        if expected not in (None, given):
            raise ValueError(
                f"model.value_range must be {expected} for image.recipe {self.image.recipe}, as its code gives pixels "
                f"in that range to its models, got {given}; set it if yours was trained so, else choose another recipe"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for section, field in SHORTHANDS.items():
            if isinstance(values.get(section), str):
                values[section] = {field: values[section]}
        if isinstance(values.get("shards"), str):
            values["shards"] = [values["shards"]]
        return values

    def check_complete(self, *, needs_output: bool = True) -> None:
        """Refuse a job that lacks what only the user can give.

        Raises:
            UsageError: no shards, model or output; or limits that do not fit together.
        """
        missing = {
            "shards": not self.shards,
            "model": not self.model.path,
            "output": needs_output and not self.output.url,
        }
        if names := [name for name, absent in missing.items() if absent]:
            flags = " and ".join(f"--{name}" for name in names)
            raise UsageError(f"the job names no {' and no '.join(names)}; give {flags}, or write them into JOB.yaml")
        self._check_patience()

    def _check_patience(self) -> None:
        """A request that is tried again must have failed before its attempt seems to hang, and the actor is ended."""
        storage, stall = self.storage, self.limits.stall_seconds
        longest = storage.retry_seconds + storage.stall_seconds  # the last try begins before the first is over
        remote = any(scheme_of(place.lstrip("@")) != "file" for place in (self.output.url, *self.shards))
        if remote and longest >= stall:
            raise UsageError(
                f"limits.stall_seconds must be above storage.retry_seconds + storage.stall_seconds ({longest:g}), so "
                f"that a store that is down for a while does not cost actors, got {stall:g}; raise it, or lower those"
            )

    def check_model(self, storage: Storage) -> None:
        """Refuse a local model folder that is not there, before anything is started.

        Raises:
            UsageError: the folder has no config.json.
        """
        local = local_path(self.model.path)
        if local is None or not (local.exists() or self.model.path.startswith(("/", ".", "~", "file:"))):
            return  # a URL or a hub id: the actors find out
        folder = join(self.model.path, *([self.model.subfolder] if self.model.subfolder else []))
        if not storage.exists(f"{folder}/config.json"):
            raise UsageError(
                f"{local_path(folder)}: no model here (config.json is missing); --model must be a folder or URL in the "
                "layout of diffusers, with config.json and safetensors, or a hub id"
            )


def job_document(
    config: JobConfig, found: Identity, calibration: Calibration | None, precision: Precision, batch_size: int
) -> dict[str, Any]:
    """What job.json says: the fingerprint and what went into it, the configuration, what was measured at the start.

    URLs are written without credentials.
    """
    stored = config.model_dump(mode="json")
    stored["shards"] = [redact(spec) for spec in config.shards]
    stored["model"]["path"], stored["output"]["url"] = redact(config.model.path), redact(config.output.url)
    parts = identity(
        weights=found.weights,
        model=found.model,
        image={**describe(config.image, config.seed), "resampler": found.resampler},
        precision=precision.value + (_COMPILED if config.model.compile else ""),
        columns=config.columns.describe(),
        select=found.select,
    )
    return {
        "tokenmill": version("tokenmill"),
        "fingerprint": fingerprint(parts),
        "identity": parts,
        "spec": asdict(found.spec),
        "batch_size": batch_size,
        "config": stored,
        "calibration": asdict(calibration) if calibration else None,
    }


def precision_of(job: Mapping[str, Any]) -> Precision:
    """The precision that a job.json fixed: `auto` must not choose again, or a resumed run would mix two.

    Raises:
        UsageError: it names none that we know.
    """
    name = str(job["identity"].get("precision")).removesuffix(_COMPILED)
    try:
        return Precision(name)
    except ValueError as error:
        raise UsageError(f"job.json: precision must be one of {', '.join(Precision)}, got {name}") from error


def resolve(
    file: Path | None = None,
    *,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> JobConfig:
    """Compose the configuration.

    Args:
        file: a YAML document.
        settings: `a.b=value`, the value in YAML.
        flags: dotted keys with values; None means not given.
        environment: `TOKENMILL_A__B` variables are taken from it; the process's own by default.

    Raises:
        UsageError: the file is missing or no YAML, a key is unknown (the nearest right one is named), a value is wrong.
    """
    document: dict[str, Any] = {}
    if file is not None:
        document = _read_yaml(file)
        _check_keys(document, str(file))
    for key, value in _from_environment(os.environ if environment is None else environment):
        _put(document, key, value, f"{ENVIRONMENT_PREFIX}{key.upper().replace('.', '__')}")
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"--set must be KEY=VALUE, got {setting!r}")
        _put(document, key.strip(), parse_yaml(text, f"--set {key}"), f"--set {key}")
    for key, value in (flags or {}).items():
        if value is not None:
            _put(document, key, value, f"--{key}")
    try:
        return _with_absolute_paths(JobConfig.model_validate(document))
    except ValidationError as error:
        raise UsageError(_explain(error)) from error


def _with_absolute_paths(config: JobConfig) -> JobConfig:
    """Local paths as this process sees them: an actor has another working directory."""
    changes: dict[str, Any] = {}
    if config.output.url:
        changes["output"] = config.output.model_copy(update={"url": canonical(config.output.url)})
    if config.qa.baseline:
        changes["qa"] = config.qa.model_copy(update={"baseline": canonical(config.qa.baseline)})
    lists = {name: canonical(url) for name in LISTS if (url := getattr(config.select, name))}
    if lists:
        changes["select"] = config.select.model_copy(update=lists)
    path = local_path(config.model.path) if config.model.path else None
    if path is not None and (path.exists() or config.model.path.startswith((".", "~"))):  # else it may be a hub id
        changes["model"] = config.model.model_copy(update={"path": str(path)})
    return config.model_copy(update=changes)


def describe_options() -> Iterator[tuple[str, str, str]]:
    """Every configuration key as (dotted key, default, description)."""
    for name, field in JobConfig.model_fields.items():
        if not _is_section(field.annotation):
            yield name, _show(field.default), field.description or ""
            continue
        for inner, option in field.annotation.model_fields.items():  # type: ignore[union-attr]
            default = option.get_default(call_default_factory=True)
            yield f"{name}.{inner}", _show(default), option.description or ""


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{file}: must be a mapping of options, got {type(document).__name__}")
    for section, field in SHORTHANDS.items():
        if isinstance(document.get(section), str):
            document[section] = {field: document[section]}
    return document


def parse_yaml(text: str | bytes, where: str) -> Any:
    """A value in YAML.

    Raises:
        UsageError: it is none; the message begins with `where`.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise UsageError(f"{where}: no valid YAML: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            yield key, parse_yaml(text, name)


def _put(document: dict[str, Any], key: str, value: Any, where: str) -> None:
    if key in SHORTHANDS and isinstance(value, str):
        key = f"{key}.{SHORTHANDS[key]}"
    known = [name for name, _, _ in describe_options()]
    if key not in known:
        raise UsageError(_unknown(key, known, where))
    section, _, field = key.partition(".")
    if field:
        if not isinstance(document.get(section), dict):
            document[section] = {}  # absent, or an empty section
        document[section][field] = value
    else:
        document[section] = value


def _check_keys(document: dict[str, Any], where: str) -> None:
    known = [name for name, _, _ in describe_options()]
    sections = {name.partition(".")[0] for name in known}
    for name, value in document.items():
        if name not in sections:
            raise UsageError(_unknown(str(name), [*sections, *known], where))
        if isinstance(value, dict) and f"{name}." in {k[: len(name) + 1] for k in known}:
            for inner in value:
                if f"{name}.{inner}" not in known:
                    raise UsageError(_unknown(f"{name}.{inner}", known, where))


def _unknown(key: str, known: Iterable[str], where: str) -> str:
    known = list(known)
    near = difflib.get_close_matches(key, known, 1, cutoff=0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [name.rpartition(".")[2] for name in known], 1
    )
    full = [name for name in known if near and (name == near[0] or name.endswith(f".{near[0]}"))]
    hint = f"; did you mean {full[0]!r}?" if full else "; `tokenmill run --help` lists all options"
    return f"{where}: unknown option {key!r}{hint}"


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("literal", "constrained")))
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{key or 'job'}: {message}, got {problem['input']!r}" if "got" not in message else message)
    return "; ".join(dict.fromkeys(lines))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _show(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if default not in ((), {}, "") else "none"
