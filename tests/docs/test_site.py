"""The site of docs/: it builds without a warning, every link leads somewhere, and nothing is left out."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import pipeline.storage  # noqa: F401  its errors are of the tree, too
from pipeline.config import describe_options
from pipeline.errors import ShardFault, TokenmillError
from pipeline.images.reasons import Reason
from pipeline.monitor import ExitCode
from pipeline.qa.gates import Gate
from pipeline.tokens.schema import COLUMNS
from tests.support.commands import ROOT

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
ALERTS = yaml.safe_load((ROOT / "infra" / "monitoring" / "alerts.yml").read_text())["groups"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def errors(kind: type[Exception] = TokenmillError) -> Iterator[str]:
    """The names of all of Tokenmill's errors."""
    for error in kind.__subclasses__():
        if error.__module__.startswith("pipeline."):
            yield error.__name__
            yield from errors(error)


def entries() -> list[str]:
    """What the runbook must have an entry for."""
    alerts = [rule["alert"] for group in ALERTS for rule in group["rules"]]
    return [*alerts, *(f"Exit code {code}" for code in ExitCode), *sorted(set(errors()))]


@pytest.mark.parametrize("name", entries())
def test_entry_of_the_runbook_has_what_it_says_its_cause_and_a_remedy(name: str) -> None:
    entry = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert entry, f"docs/runbook.md must have an entry `### {name}`, got none"
    assert re.findall(r"^\* \*\*(\w+):\*\* \S", entry[1], re.MULTILINE) == ["Says", "Cause", "Remedy"]


def test_runbook_has_no_entry_of_what_is_gone() -> None:
    assert set(re.findall(r"^### (.*)$", RUNBOOK, re.MULTILINE)) == set(entries())


def test_alerts_point_at_their_entries() -> None:
    rules = [rule for group in ALERTS for rule in group["rules"]]
    assert [rule["annotations"]["runbook"] for rule in rules] == [
        f"docs/runbook.md#{rule['alert'].lower()}" for rule in rules
    ]


@pytest.mark.parametrize(
    ("title", "words"), [("Faults of a shard", ShardFault), ("Reasons of a reject", Reason), ("Gates", Gate)]
)
def test_table_of_the_runbook_has_every_word(title: str, words: type[Enum]) -> None:
    section = RUNBOOK.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE) == [word.value for word in words]


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))])
def test_links_lead_to_files_or_are_of_good_form(page: str) -> None:
    for link in LINK.findall((ROOT / page).read_text()):
        url = urlsplit(link)
        if url.scheme:
            assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/\S*)?", link), f"{page}: {link}"
        elif not url.path.startswith("reference/"):  # made by the build, which checks these
            assert (ROOT / page).parent.joinpath(url.path).exists() or not url.path, f"{page}: {link}"


# --- the site itself ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` makes."""
    folder = tmp_path_factory.mktemp("site")
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in line]
    command = line.partition("-m mkdocs ")[2].split()
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", *command, "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "--strict" in command
    assert "--quiet" not in command, "it hides the warnings from --strict"
    return folder


@pytest.mark.system
def test_every_key_and_column_is_in_the_reference(site: Path) -> None:
    keys, columns = ((site / "reference" / f"{page}.html").read_text() for page in ("configuration", "columns"))
    assert [key for key, _, _ in describe_options() if f"<td><code>{key}</code></td>" not in keys] == []
    assert [name for name in COLUMNS if f"<td><code>{name}</code></td>" not in columns] == []


@pytest.mark.system
def test_pages_need_no_network_and_hold_no_raw_tables(site: Path) -> None:
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert len(pages) > len(list(ROOT.glob("docs/*.md")))
    for page in pages:
        loaded = re.findall(r'<(?:script|img)\b[^>]*\bsrc="([^"]*)"|<link\b[^>]*\bhref="([^"]*)"', page)
        assert [url for urls in loaded for url in urls if "//" in url] == []
        assert "|---" not in page, "a table that is not taken for one"
