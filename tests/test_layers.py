"""The house: imports go down only. docs/design.md draws the floors; here they are held."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS: dict[str, int] = {
    "pipeline.errors": 0,
    "pipeline.urls": 1,
    "pipeline.storage": 1,
    "pipeline.kernels": 1,
    "pipeline.model": 1,
    "pipeline.tokenizers": 1,
    "pipeline.images": 1,
    "pipeline.encoding": 1,
    "pipeline.meter": 1,
    "pipeline.signals": 1,
    "pipeline.limits": 1,
    "pipeline.lean": 1,
    "pipeline.schedule": 1,
    "pipeline.tokens.schema": 1,
    "pipeline.fingerprint": 1,
    "pipeline.select": 1,
    "pipeline.card": 1,
    "pipeline.scratch": 1,
    "pipeline.timeline": 1,
    "pipeline.shards": 2,
    "pipeline.tokens": 2,
    "pipeline.commit": 2,
    "pipeline.sidecars": 2,
    "pipeline.training": 2,
    "pipeline.messages": 3,
    "pipeline.forecast": 3,
    "pipeline.prefetch": 3,
    "pipeline.feed": 3,
    "pipeline.isolation": 3,
    "pipeline.engine": 3,
    "pipeline.tokenize_shard": 3,
    "pipeline.output": 3,
    "pipeline.resume": 3,
    "pipeline.verify": 3,
    "pipeline.recount": 3,
    "pipeline.fit": 3,
    "pipeline.exports": 3,
    "pipeline.decoding": 3,
    "pipeline.prior": 3,
    "pipeline.qa": 3,
    "pipeline.config": 4,
    "pipeline.worker": 4,
    "pipeline.decoder": 4,
    "pipeline.claim": 4,
    "pipeline.plan": 4,
    "pipeline.bench": 4,
    "pipeline.progress": 4,
    "pipeline.monitor": 4,
    "pipeline.ending": 4,
    "pipeline.submit": 4,
    "pipeline.on_ray": 5,
    "pipeline.submit.ray_jobs": 5,
    "pipeline.driver": 5,
    "pipeline": 5,
    "jobs": 6,
}
SPEAK_RAY = {"pipeline.on_ray", "pipeline.submit.ray_jobs"}
SPEAK_FSSPEC = {"pipeline.storage.remote"}
FILES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The longest entry of FLOORS that the module lies in."""
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in FLOORS)


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{a.name}" for a in node.names if is_module(f"{node.module}.{a.name}"))
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def ours(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] in ("pipeline", "jobs")}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_of_a_room_go_down(path: Path) -> None:
    me = module_of(path)
    for name in ours(path):
        assert FLOORS[room_of(name)] <= FLOORS[room_of(me)], f"{me} must not import {name}: it is on a higher floor"


def test_rooms_of_one_floor_have_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        me = room_of(module_of(path))
        graph.setdefault(me, set()).update(room_of(name) for name in ours(path) if is_module(name))
    done: set[str] = set()

    def visit(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, f"cycle: {' -> '.join([*trail, room])}"
        if room not in done:
            for below in graph.get(room, set()) - {room, "pipeline", "jobs"}:
                visit(below, (*trail, room))
            done.add(room)

    for room in graph:
        visit(room, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_commands_do_not_import_each_other(path: Path) -> None:
    me = module_of(path)
    if me.startswith("jobs.") and me != "jobs.__main__":
        assert {name for name in ours(path) if name.startswith("jobs.")} <= {"jobs.options"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_ray_and_fsspec_stay_in_their_rooms(path: Path) -> None:
    me, roots = module_of(path), {name.split(".")[0] for name in imports_of(path)}
    assert "ray" not in roots or room_of(me) in SPEAK_RAY
    assert not roots & {"fsspec", "s3fs", "gcsfs", "adlfs"} or me in SPEAK_FSSPEC


def test_every_file_is_a_small_room() -> None:
    long = {module_of(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not long, f"files over 400 lines are more than one room: {long}"
