"""`tokenmill run` from shards to accounts."""

import shutil
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from tests.support.commands import last_json, parts, tokenmill
from tests.system.conftest import SAMPLES, SHARDS, Case

pytestmark = pytest.mark.system


def test_every_sample_is_accounted_for(case: Case) -> None:
    assert len(case.parts) == SHARDS
    result = tokenmill("verify", case.output, "--json")
    assert result.returncode == 0, result.stdout
    report = last_json(result)
    assert [account["samples"] for account in report["accounts"]] == [SAMPLES] * SHARDS
    assert all(account["samples"] == account["rows"] + account["rejects"] for account in report["accounts"])


def test_parts_do_not_depend_on_the_number_of_actors(case: Case, tmp_path: Path) -> None:
    result = tokenmill(*case.arguments(tmp_path, "--actors", 2, "--set", "cluster.shards_in_flight=3"))
    assert result.returncode == 0, result.stderr
    assert parts(tmp_path) == case.parts


def test_every_reader_gives_the_same_rows(case: Case, tmp_path: Path) -> None:
    files = f"{case.output}/tokens/*.parquet"
    reference = ds.dataset(f"{case.output}/tokens").to_table(columns=["key", "tokens"]).sort_by("key")
    keys, tokens = reference["key"].to_pylist(), np.stack(reference["tokens"].to_numpy())
    assert tokens.shape == (SHARDS * SAMPLES, 256)
    assert len(np.unique(tokens)) > 16
    duck = duckdb.sql(f"select key, tokens from '{files}' order by key").fetchnumpy()
    polar = pl.read_parquet(files).sort("key")
    panda = pd.read_parquet(f"{case.output}/tokens").sort_values("key")
    face = datasets.load_dataset(str(case.output), split="train", cache_dir=str(tmp_path)).with_format("numpy")[:]
    order = np.argsort(face["key"])
    for name, found_keys, found in [
        ("duckdb", duck["key"].tolist(), np.stack(list(map(np.asarray, duck["tokens"])))),
        ("polars", polar["key"].to_list(), polar["tokens"].to_numpy()),
        ("pandas", panda["key"].tolist(), np.stack(panda["tokens"].to_numpy())),
        ("datasets", face["key"][order].tolist(), face["tokens"][order]),
    ]:
        assert list(found_keys) == keys, name
        assert np.array_equal(found, tokens), name


def test_second_run_does_nothing_and_keeps_every_part(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "output"
    shutil.copytree(case.output, output)
    before = {path: path.stat().st_mtime_ns for path in output.glob("tokens/*")}
    result = tokenmill(*case.arguments(output, "--json"))
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in output.glob("tokens/*")} == before
    assert last_json(result)["shards"] == {"total": SHARDS, "committed": SHARDS, "quarantined": 0}


def test_changed_configuration_is_refused_with_what_differs(case: Case) -> None:
    result = tokenmill(*case.arguments(case.output, "--set", "image.recipe=pad", "--set", "columns.caption=null"))
    assert result.returncode == 2
    assert "image.recipe: center-crop there, pad here" in result.stderr
    assert "columns.caption: txt there, None here" in result.stderr
    assert parts(case.output) == case.parts


def test_added_shards_are_done_and_nothing_else(case: Case, tmp_path: Path) -> None:
    few = ["run", "--model", case.model, "--output", tmp_path, "--set", "image.size=64", "--json"]
    first = tokenmill(*few, "--shards", f"{case.shards}/0000{{0..1}}.tar")
    assert (first.returncode, last_json(first)["shards"]["total"]) == (0, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tokens/*")}
    second = tokenmill(*few, "--shards", f"{case.shards}/0000[234].tar")
    assert (second.returncode, last_json(second)["shards"]["total"]) == (0, 5)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(parts(tmp_path).items()) < set(case.parts.items())


def test_end_to_end_rate_is_printed_beside_its_ceilings(case: Case, tmp_path: Path) -> None:
    shard = case.shards / "00000.tar"
    arguments = ["--shards", shard, "--model", case.model, "--output", tmp_path, "--set", "image.size=64", "--json"]
    result = tokenmill("run", *arguments)
    rates = last_json(result)["images_per_second"]
    assert all(rate > 0 for rate in rates.values())
    assert rates["bound"] < min(rates["model_alone"], rates["decode_alone"])
    assert (
        f"both together allow {rates['bound']:,.1f}: {rates['end_to_end'] / rates['bound']:.0%} reached"
        in result.stdout
    )
