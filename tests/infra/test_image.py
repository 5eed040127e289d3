"""The image and the compose file: pinned, not root, one Ray everywhere, ports on loopback."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.starts import check_flags, flags_of
from tests.security.test_lock import pinned
from tests.support.commands import ROOT

INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
COMPOSE = INFRA / "laptop" / "compose.yaml"


def stages() -> dict[str, str]:
    """Stage -> its instructions."""
    parts = re.split(r"^FROM (?:\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_target_is_pinned_by_hash_and_not_root(target: str) -> None:
    steps = stages()[target]
    assert "--require-hashes" in steps
    assert re.findall(r"^USER (\S+)$", steps, re.MULTILINE) == ["ray"]
    assert "RAY_AUTH_MODE=token" in steps
    assert "sudo" not in steps


def test_every_file_that_is_copied_is_let_through() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY --chown=ray (.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    let_through = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_one_ray_in_base_lock_and_tests() -> None:
    [base] = re.findall(r"^ARG RAY=([\d.]+)-py311$", DOCKERFILE, re.MULTILINE)
    assert base == version("ray") == str(pinned((INFRA / "requirements.lock").read_text())["ray"])


@pytest.fixture
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def test_ports_are_open_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_ray_of_the_laptop_starts_as_told(compose: dict[str, Any]) -> None:
    for name in ("head", "worker"):
        service = compose["services"][name]
        check_flags(flag for flag in flags_of(service["command"]))
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["env_file"] == [".env"], "the keys are no part of the file"
    assert "infra/laptop/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_volumes_of_our_image_are_its_users(compose: dict[str, Any]) -> None:
    """A new volume takes the owner of the image's folder where it is mounted, and root if there is none."""
    ours = [service for service in compose["services"].values() if service["image"].startswith("tokenmill:")]
    places = {mount.split(":")[1] for service in ours for mount in service.get("volumes", [])}
    assert places
    for steps in stages().values():
        assert all(f"mkdir -p {place}" in steps for place in places if "RUN" in steps)


def test_images_have_versions(compose: dict[str, Any]) -> None:
    tags = [service["image"].rpartition(":")[2] for service in compose["services"].values()]
    assert "latest" not in tags
    assert all(tags)


@pytest.mark.system
def test_compose_reads_its_file(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text())
    (tmp_path / ".env").write_text("AWS_ACCESS_KEY_ID=laptop\n")
    command = ["docker-compose", "-f", "compose.yaml", "config"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["services"].keys() == yaml.safe_load(COMPOSE.read_text())["services"].keys()
