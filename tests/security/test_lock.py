"""The locks of the image and of CI: files pinned by version and hash, in step with pyproject.toml and constraints."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.commands import ROOT

LOCKS = {"requirements.lock": ("gcs", "azure", "cluster"), "requirements-dev.lock": ("gcs", "azure", "cluster", "dev")}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pinned(text: str) -> dict[str, Version]:
    """Package -> version of every line that names one."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {str(canonicalize_name(name)): Version(version) for name, version in found}


@pytest.fixture(params=LOCKS)
def lock(request: pytest.FixtureRequest) -> Path:
    return ROOT / "infra" / request.param


def test_every_package_has_hashes_and_no_line_names_a_place(lock: Path) -> None:
    entries = lock.read_text().replace("\\\n", " ").splitlines()
    assert len(entries) > 50
    for entry in entries:
        name, *rest = entry.split()
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*(\[[^\]]*\])?==\S+", name), entry
        hashes = [part for part in rest if part.startswith("--hash=")]
        assert hashes, entry
        assert all(HASH.fullmatch(one) for one in hashes), entry
    assert "://" not in lock.read_text()


def test_versions_are_those_that_are_tested(lock: Path) -> None:
    tested = pinned((ROOT / "constraints.txt").read_text())
    locked = pinned(lock.read_text())
    assert {"torch", "pillow", "ray", "pyarrow"} <= tested.keys() & locked.keys()
    assert {name: locked[name] for name in tested.keys() & locked.keys() if locked[name] != tested[name]} == {}


def test_every_dependency_is_locked_within_its_range(lock: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in LOCKS[lock.name] for line in project["optional-dependencies"][extra]]
    locked = pinned(lock.read_text())
    for wanted in map(Requirement, [*project["dependencies"], *extras]):
        if wanted.marker is None or wanted.marker.evaluate():
            assert locked[str(canonicalize_name(wanted.name))] in wanted.specifier, f"{wanted}: `make lock` renews it"
