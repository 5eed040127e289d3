"""An export on the Hub: a data set holds the last one that was sent, and nothing of those before."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.exports.hugging_face import upload
from pipeline.exports.job import ExportConfig, export
from pipeline.exports.source import open_source
from pipeline.storage import Storage
from tests.support.hub import REPO, hub
from tests.support.token_runs import make_run


def test_second_cut_replaces_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of both would be read as one data set, with each row twice."""
    source = open_source(Storage(), make_run(tmp_path / "run"))
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub() as here:
        monkeypatch.setattr(constants, "ENDPOINT", here.endpoint)
        here.files["LICENSE"] = b"theirs"
        for rows in (5, 9, 9):
            to = tmp_path / f"to-{rows}"
            done = export(source, ExportConfig(format="hf", to=str(to), rows_per_file=rows))
            upload(str(to), REPO)
            names = [f"data/train-{number:05d}-of-{done.units:05d}.parquet" for number in range(done.units)]
            assert sorted(here.files) == ["LICENSE", "README.md", *names]
            assert all(here.files[name] == (to / name).read_bytes() for name in ["README.md", *names])
