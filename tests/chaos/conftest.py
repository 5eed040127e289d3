"""The ground of the cases, made once, and the table of what was tried.

CHAOS=full runs the long version, CHAOS=short (the default) the one of `make test`. CHAOS_REPORT=FILE receives the table
as JSON lines.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.chaos.ground import SCALE, Ground, OneNode, undisturbed_run
from tests.chaos.poison import write_marked_corpus
from tests.support.faults import Faults

if SCALE not in ("short", "full"):
    raise pytest.UsageError(f"CHAOS must be short or full, got {SCALE!r}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[tuple[OneNode, Faults]]:
    """A Ray cluster that many runs share. Its folder is short, as paths of sockets must be."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    faults = Faults(folder)
    cluster = OneNode(folder, faults)
    yield cluster, faults
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def undisturbed(cluster: tuple[OneNode, Faults], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """12 shards of 40 samples, and an undisturbed run of them."""
    folder = tmp_path_factory.mktemp("ground")
    return undisturbed_run(*cluster, write_marked_corpus(folder / "in"), tiny_model, folder / "out")


@pytest.fixture
def ground(undisturbed: Ground) -> Ground:
    """The ground, with no fault planned and no actor on it."""
    undisturbed.calm()
    return undisturbed


@pytest.fixture
def fired(record_property: Callable[[str, object], None]) -> Counter[str]:
    """What a case counts in here comes into the table: fault -> how often it fired."""
    counter: Counter[str] = Counter()
    record_property("fired", counter)
    return counter


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the counts travel between processes, as plain dictionaries."""
    report = yield
    report.user_properties = [
        (name, dict(value) if isinstance(value, Counter) else value) for name, value in report.user_properties
    ]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried, how often, and the result; one line for each test function."""
    lines: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            fired = dict(report.user_properties).get("fired")
            if fired is not None and report.when == "call":
                name = (
                    report.nodeid.rpartition("::")[2]
                    .partition("[")[0]
                    .partition("@")[0]
                    .removeprefix("test_")
                    .replace("_", " ")
                )
                cases, faults = lines.setdefault(name, (Counter(), Counter()))
                cases[outcome] += 1
                faults.update(fired)
    if not lines:
        return
    terminalreporter.section(f"chaos, {SCALE}")
    terminalreporter.write_line("| what was tried | cases | faults that fired | result |\n|---|---|---|---|")
    for name, (cases, faults) in lines.items():
        result = f"{cases['failed']} failed" if cases["failed"] else "all held"
        many = ", ".join(f"{count} x {fault}" for fault, count in sorted(faults.items()))
        terminalreporter.write_line(f"| {name} | {cases.total()} | {many} | {result} |")
    if "CHAOS_REPORT" in os.environ:
        rows = [{"tried": name, "cases": cases, "fired": faults} for name, (cases, faults) in lines.items()]
        Path(os.environ["CHAOS_REPORT"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
