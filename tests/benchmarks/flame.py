"""Where the time of a whole `tokenmill run` goes, as a flame graph: driver, actor and Ray's own processes.

    python -m tests.benchmarks.flame OUT.svg [IMAGES] [SIZE]        500 images at 256 pixels if not given

Needs py-spy. Only threads that compute are in it. Made for a browser: it shows a name and its share where the mouse
points.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.shards.corpus import CorpusConfig, make_corpus
from tests.support.commands import ROOT, environment

ASSETS = ROOT / "jobs" / "assets"
SHARD_IMAGES = 250
# Part of a command line -> its process, the first that fits; a raylet's names those of its workers. Others are Ray's.
ROLES = {"/raylet/raylet": "raylet", "default_worker": "actor", "-m jobs": "driver"}
RATE = 50  # looks per second


def main(picture: Path, images: int = 500, size: int = 256) -> None:
    """Draw it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        corpus = CorpusConfig(shards=-(-images // SHARD_IMAGES), samples=min(images, SHARD_IMAGES), jpeg_only=True)
        make_corpus(ASSETS / "photos", folder / "in", corpus)
        run = ["run", "--shards", folder / "in", "--model", ASSETS / "vq-f8-1024", "--output", folder / "out"]
        spy = ["py-spy", "record", "--subprocesses", "--function", "--rate", RATE, "--output", picture]
        command = [*spy, "--", sys.executable, "-m", "jobs", *run, "--set", f"image.size={size}"]
        subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(), check=True)
    picture.write_text(named(picture.read_text()))


def named(drawing: str) -> str:
    """Processes by what they are instead of by their command lines."""

    def renamed(frame: re.Match[str]) -> str:
        role = next((role for part, role in ROLES.items() if part in frame["command"]), "Ray")
        return f"<g><title>{role} {frame['share']}{frame['box']}{role}</text>"

    drawing = re.sub(r"py-spy record [^<]*", "tokenmill run", drawing)
    return re.sub(
        r"<g><title>process \d+:(?P<command>[^<]*) (?P<share>\([\d,]+ samples)(?P<box>.*?<text[^>]*>)[^<]*</text>",
        renamed,
        drawing,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))
