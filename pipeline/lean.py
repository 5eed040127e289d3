"""What the processes of a run do without: several of them share a node with whatever else runs there."""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa


def leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas in this process; to be called before its first array.

    With its first array pyarrow imports pandas wherever that is installed, to know its types: half a second and 30 MB
    for types that no run has. `to_pandas` still imports it.
    """
    without_pandas = _WithoutPandas()
    sys.meta_path.insert(0, without_pandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(without_pandas)


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not needed here", name=name)
