"""Every command line and Python block of the README and of the tutorial, as a new user would type them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.storage import Storage
from tests.support.commands import ROOT, environment
from tests.support.corpora import write_corpus
from tests.support.documents import blocks, command_lines
from tests.support.s3 import S3
from tests.support.shared_ray import shared_ray

pytestmark = pytest.mark.system
README = (ROOT / "README.md").read_text()
TUTORIAL = "docs/tutorial.md"
SUBMIT = "tokenmill submit "  # needs a cluster: `test_submit.py` has one


def commands() -> list[str]:
    """Each line once, though both have it."""
    lines = dict.fromkeys([*command_lines("README.md"), *command_lines(TUTORIAL)])
    return [line for line in lines if not line.startswith(SUBMIT)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what a clone holds, set up, and after `make demo`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", ".venv", "pipeline", "jobs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    done = shell("make demo", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def shell(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        shell=True,
        executable="/bin/bash",
        cwd=folder,
        env=environment(PATH=path, **env),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def test_first_screen_shows_the_two_commands_and_a_picture() -> None:
    first = README.splitlines()[:24]
    assert any(line.startswith("make demo") for line in first)
    assert any(line.startswith("make test") for line in first)
    picture = next(match[1] for line in first if (match := re.match(r"!\[.*\]\((.*)\)", line)))
    assert min(pixels_of(ROOT / picture).shape[:2]) > 400
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_demo_leaves_a_picture_that_resembles_the_originals(clone: Path) -> None:
    picture = pixels_of(clone / "demo" / "reconstructions.png")
    top, left, side = 30, 8, 256
    original = picture[top : top + side, left : left + side]
    decoded = picture[top + side : top + 2 * side, left : left + side]
    error = np.mean((original - decoded) ** 2)
    assert original.std() > 10, "a photograph, not a blank"
    assert 10 * np.log10(255**2 / error) > 18
    other = picture[top : top + side, left + side + 8 : left + 2 * side + 8]
    assert np.mean((other - decoded) ** 2) > 2 * error, "it resembles its own original, not any"


def test_python_blocks_run_in_order(clone: Path) -> None:
    code = (
        "\n".join(blocks("README.md", "python"))
        + "\nassert tokens.shape == (256, 1024) and images.shape == (4, 3, 256, 256)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_python_block_of_the_tutorial_shows_a_row(clone: Path) -> None:
    [code] = blocks(TUTORIAL, "python")
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert " 32 32 [" in result.stdout, result.stderr


def test_job_file_runs(clone: Path) -> None:
    (clone / "job.yaml").write_text(blocks("README.md", "yaml")[0])
    result = shell("tokenmill run job.yaml", clone, **shared_ray())
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def bucket(clone: Path, s3: S3) -> S3:
    """The bucket that the README speaks of."""
    url = s3.make_bucket("bucket")
    storage = Storage()
    for shard in write_corpus(clone / "photos", shards=4, samples=4).iterdir():
        storage.put(f"{url}/photos/{shard.name}", shard)
    for file in (ROOT / "jobs" / "assets" / "vq-f8-1024").iterdir():
        storage.put(f"{url}/vq-f16/{file.name}", file)
    return s3


@pytest.mark.parametrize("command", commands())
def test_command_line(command: str, clone: Path, bucket: S3) -> None:
    result = shell(command, clone, **(bucket.environment if "s3://" in command else shared_ray()))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_every_command_is_in_the_table() -> None:
    shown = set(re.findall(r"^\| `tokenmill (\w+)", README, re.MULTILINE))
    helped = shell("tokenmill --help", ROOT, COLUMNS="200").stdout
    assert shown == set(re.findall(r"^│ (\w+) ", helped, re.MULTILINE))


def test_every_file_is_on_the_map() -> None:
    named = set(re.findall(r"`([\w./]+?)(?:/|\.py|\*)?`", README[README.index("## The map") :]))
    rooms = {path.stem for path in (ROOT / "pipeline").iterdir() if not path.name.startswith("_")}
    assert rooms <= {name.removesuffix(".py").rpartition("/")[2] for name in named}
