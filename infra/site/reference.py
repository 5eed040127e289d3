"""The site's reference, made from the code each time the site is built: a hook of mkdocs.

Names, defaults and meanings are those that the code itself uses; a page cannot fall behind.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from jobs.__main__ import app
from pipeline import errors
from pipeline.config import ENVIRONMENT_PREFIX, describe_options
from pipeline.fit.config import FitConfig
from pipeline.images.reasons import Reason
from pipeline.monitor import ExitCode
from pipeline.prior.config import PriorConfig
from pipeline.qa.gates import Gate
from pipeline.tokens.schema import COLUMNS, ColumnsConfig, FieldKind, TokenSpec, arrow_schema
from pipeline.verify import FindingKind


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; mkdocs calls it."""
    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def commands() -> str:
    """Every command with its arguments and options."""
    pages = ["# Commands", "`tokenmill COMMAND`, or `python -m jobs COMMAND`.", _endings()]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        places = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        rows = [(_code(place.metavar or place.name), *_told(place)) for place in places]
        rows += [(_code(_spelled(option)), *_told(option)) for option in options]
        pages += [f"## {name}", inspect.cleandoc(command.help or ""), _table(("", "default", ""), rows)]
        if command.epilog:
            pages.append("`--set KEY=VALUE` takes any key of the [configuration](configuration.md).")
    return "\n\n".join(pages)


def configuration() -> str:
    """Every key of a job and of the two trainings."""
    pages = [
        "# Configuration",
        "Keys of JOB.yaml, of `--set KEY=VALUE`, and of the environment: `image.size` is "
        f"`{ENVIRONMENT_PREFIX}IMAGE__SIZE` there. Flags win over `--set`, that over the environment, that over the "
        "file. `model: REF` and `output: URL` stand for `model.path` and `output.url`.",
    ]
    sections: dict[str, list[tuple[str, ...]]] = {}
    for key, default, text in describe_options():
        sections.setdefault(key.rpartition(".")[0] or "job", []).append((_code(key), _code(default), text))
    for section, rows in sections.items():
        pages += [f"## {section}", _table(("key", "default", ""), rows)]
    for command, model in {"fit": FitConfig, "prior": PriorConfig}.items():
        pages += [f"## Of `tokenmill {command}`", _table(("key", "default", ""), _fields(model))]
    return "\n\n".join(pages)


def columns() -> str:
    """The columns of a part."""
    schema = arrow_schema(TokenSpec(1024, 16, 16), ColumnsConfig())
    rows = [
        (_code(field.name), _code(str(field.type)), "yes" if field.nullable else "", COLUMNS[field.name])
        for field in schema
    ]
    return "\n\n".join(
        (
            "# Columns",
            "Of every Parquet file under `OUTPUT/tokens`, here for a codebook of 1,024 codes and a grid of 16 x 16.",
            _table(("column", "Arrow type", "null", ""), rows),
            f"`columns.fields` adds columns of your own, of the types {', '.join(map(_code, FieldKind))}; see "
            "[columns](configuration.md#columns). [Reading the tokens](../reading.md) shows how to read them.",
        )
    )


def endings() -> str:
    """Exit codes, errors, and the words of the accounts."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    pages = [
        "# Endings and errors",
        "The [runbook](../runbook.md) has cause and remedy of each.",
        "## Exit codes",
        _endings(),
        "## Errors",
        f"```text\n{inspect.cleandoc(tree)}\n```",
        "## Faults of a shard",
        "The `reason` of a quarantined shard in `summary.json`.",
        _words(errors.ShardFault),
        "## Reasons of a reject",
        "The `reason` in `rejects.parquet`, by the `stage` at which it was found: "
        f"{', '.join(_code(stage) for stage in errors.Stage)}. A careful attempt adds `crashed`.",
        _words(Reason),
        "## Gates",
        "The `gate` of a finding in `summary.json`.",
        _words(Gate),
        "## Findings of verify",
        _words(FindingKind),
    ]
    return "\n\n".join(pages)


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": configuration,
    "columns": columns,
    "errors": endings,
}


def meanings(kind: type[Enum]) -> dict[str, str]:
    """What the members of an enumeration mean: the comments behind them.

    Raises:
        ValueError: a member has none.
    """
    source = inspect.getsource(kind)
    found = {}
    for member in kind:
        match = re.search(rf"^    {member.name} = .*?  # (.+)$", source, re.MULTILINE)
        if match is None:
            raise ValueError(f"{kind.__name__}.{member.name} must have a comment that says what it means, got none")
        found[str(member.value)] = match[1]
    return found


def _endings() -> str:
    rows = [(_code(f"{value}"), meaning) for value, meaning in meanings(ExitCode).items()]
    return _table(("exit code", "means"), rows)


def _words(kind: type[Enum]) -> str:
    return _table(("word", "means"), [(_code(word), meaning) for word, meaning in meanings(kind).items()])


def _spelled(option: Any) -> str:
    return " ".join(("/".join((*option.opts, *option.secondary_opts)), *([option.metavar] if option.metavar else [])))


def _told(parameter: Any) -> tuple[str, str]:
    """Default and help of a parameter of a command."""
    default = parameter.default
    if parameter.param_type_name == "option" and parameter.secondary_opts:
        default = parameter.opts[0] if default else parameter.secondary_opts[0]
    shown = default not in (None, False, ()) and not callable(default)
    return _code(str(default)) if shown else "", getattr(parameter, "help", None) or ""


def _fields(model: type[BaseModel]) -> Iterable[tuple[str, ...]]:
    for key, field in model.model_fields.items():
        default = "the demo's" if isinstance(field.default, BaseModel) else _code(str(field.default))
        yield _code(key), default, field.description or ""


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
