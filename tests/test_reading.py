"""docs/reading.md: every block of code, in order, on a run of its own."""

from typing import Any

import pytest
import ray
import torch

from pipeline.tokens.schema import TokenSpec
from tests.support.documents import blocks
from tests.support.token_runs import make_run

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore")]  # of others' libraries


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the blocks leave behind."""
    folder = tmp_path_factory.mktemp("reading")
    make_run(folder / "demo" / "tokens", (100, 60), spec=TokenSpec(1024, 2, 2), group=40)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        patch.setenv("HF_HOME", str(folder / "hf"))
        for block in blocks("docs/reading.md", "python"):
            exec(block, found)
    ray.shutdown()
    return found


def test_torch(names: dict[str, Any]) -> None:
    assert sum(len(batch["tokens"]) for batch in names["rest"]) == 160 - 64
    assert sum(len(batch["tokens"]) for batch in names["remaining"]) == 160 - 64
    assert names["batch"]["tokens"].shape == (8, 5)
    assert isinstance(names["tokens"], torch.Tensor)
    assert {type(caption) for caption in names["captions"]} <= {str, type(None)}


def test_others_read_the_same(names: dict[str, Any]) -> None:
    expected = sorted(names["matrix"].tolist())
    assert len(expected) == 160
    assert sorted(names["grids"].tolist()) == sorted(names["rows"]["tokens"]) == expected
    assert sorted(row["tokens"].tolist() for row in names["stream"]) == expected
    counts = torch.bincount(torch.tensor(expected).reshape(-1))
    assert [n for _, n in names["common"]] == counts.sort(descending=True).values[:10].tolist()
    assert all(used > 1 for used in names["used"])
