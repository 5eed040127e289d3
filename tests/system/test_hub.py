"""The whole job on the Hugging Face Hub, as far as a stand-in on loopback goes: shards in, parts and accounts out."""

from pathlib import Path

import pytest

from tests.support.checker import digests, problems
from tests.support.commands import last_json, tokenmill
from tests.support.corpora import write_corpus
from tests.support.hub import REPO, hub

pytestmark = pytest.mark.system

SHARDS = 2
URL = f"hf://datasets/{REPO}"


def test_run_and_verify_on_the_hub(tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", shards=SHARDS, samples=2)
    settings = ["--set", "image.size=32", "--set", "output.allow_overwrite_commit=true", "--json"]
    with hub() as here:
        here.files |= {f"in/{shard.name}": shard.read_bytes() for shard in corpus.iterdir()}
        here.large = 2000
        environment = {"HF_ENDPOINT": here.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_nobody"}
        command = ["run", "--shards", f"{URL}/in", "--model", tiny_model, "--output", f"{URL}/out", *settings]
        result = tokenmill(*command, **environment)
        assert result.returncode == 0, result.stderr
        assert last_json(result)["shards"] == {"total": SHARDS, "committed": SHARDS, "quarantined": 0}
        assert tokenmill("verify", f"{URL}/out", **environment).returncode == 0
        for name, content in here.files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    assert here.objects, "large files are sent ahead"
    assert problems(tmp_path / "out", corpus, digests(tmp_path / "out"), place=f"{URL}/in") == []
