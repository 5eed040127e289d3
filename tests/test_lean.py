"""The processes of a run leave out what they do not need."""

import subprocess
import sys

import pytest

from tests.support.commands import ROOT

WAYS = {
    "as pyarrow does it": "",
    "driver": """
from pipeline import driver
from pipeline.config import JobConfig
from pipeline.errors import UsageError
try:
    driver.run(JobConfig.model_validate({"shards": ["no/such/*.tar"], "model": {"path": "x"}, "output": {"url": "y"}}))
except UsageError:
    pass
""",
    "actor": """
from pipeline.config import JobConfig
from pipeline.on_ray.cluster import RemoteWorker
RemoteWorker(JobConfig(), 1, "cpu")
""",
}
THEN = """
import sys
import pyarrow as pa
table = pa.table({"text": ["a", None]})
print("pandas" in sys.modules, table.to_pandas().text[0])
"""


@pytest.mark.parametrize(("way", "imported"), [("as pyarrow does it", True), ("driver", False), ("actor", False)])
def test_pandas_is_imported_only_where_it_is_asked_for(way: str, imported: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAYS[way] + THEN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(imported), "a"]
