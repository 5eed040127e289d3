"""The dataset card of OUTPUT: makes `datasets.load_dataset(OUTPUT)` work, and says what the tokens are.

The block at its head is Hugging Face's dataset card metadata: https://huggingface.co/docs/hub/datasets-cards
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import yaml

_SIZES = ("n<1K", *(f"{low}<n<{high}" for low, high in zip(
    ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B"),
    ("10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"), strict=True)), "n>1T")  # fmt: skip

_VARYING = "tokens, in grids of several shapes"
_MOST_SOURCES = 20  # in the card; manifest.parquet names every shard

_CARD = """---
{metadata}---

# Visual tokens

{rows:,} rows of {shape} (codes 0 to {last_code}), made by Tokenmill from {shards:,} WebDataset
shards. {samples:,} samples: {tokenized:,} tokenized, {rejects:,} rejected{why}{filtered}.
{megabytes:,.1f} MB of Parquet.

## Columns

| column | type |
|---|---|
{columns}

`tokens` is row-major: `np.array(row["tokens"]).reshape(row["grid_height"], row["grid_width"])` gives the grid. Indices
are raw: no BOS, no offset into a text vocabulary. `shard` and `sample_index` tell the image a row was made of, `crop`
(top, left, height, width in its pixels) and `flip` which view of it.

## Provenance

| | |
|---|---|
| fingerprint | `{fingerprint}` |
| weights (sha256 of the tensors) | `{weights}` |
| model | {model} |
| image recipe | {recipe} |
| precision | {precision} |
| sources | {sources} |

The same fingerprint means the same weights, preprocessing and precision. {whole}

## Read

```python
import datasets

tokens = datasets.load_dataset("path/or/repo", split="train")
```

## Decode

With the model named above, in this project's checkout:

```python
import torch
{load}
row = tokens[0]
indices = torch.tensor(row["tokens"]).reshape(1, row["grid_height"], row["grid_width"])
image = model.decode_indices(indices)  # [1, 3, H, W] in [-1, 1]
```

## Licence

Not stated: tokens decode to pictures, so the licences of the source images apply to them as well. Whoever publishes
this data set puts its licence into the `license` field above, and the sources' terms here.
"""


def dataset_card(
    job: Mapping[str, Any],
    summary: Mapping[str, Any],
    schema: Any = None,
    *,
    files: str = "tokens/*.parquet",
    export: Mapping[str, int] | None = None,
) -> str:
    """The README.md of a run, or of an export of it.

    Args:
        job: its job.json.
        summary: its summary.json.
        schema: the `pyarrow.Schema` of its rows; None if there is no part yet.
        files: where the rows are, relative to the card.
        export: of a finished copy: `num_bytes` in memory and `download_size` on disk. A run may grow, so that its card
            states no numbers that `datasets` would check.
    """
    identity, spec = job["identity"], job["spec"]
    return _CARD.format(
        metadata=yaml.safe_dump(_metadata(summary, schema, files, export), sort_keys=False),
        rows=summary["rows"],
        samples=summary["samples"],
        tokenized=summary["tokenized"],
        rejects=summary["rejects"],
        filtered=f", {summary['filtered']:,} not wanted (`select`)" if summary.get("filtered") else "",
        why="" if export else " (`rejects.parquet` says why)",
        whole="" if export else "`job.json` holds all of it, `manifest.parquet` every shard.",
        shards=summary["shards"]["committed"],
        megabytes=(export["download_size"] if export else summary["bytes"]) / 1e6,
        columns="\n".join(f"| `{field.name}` | {_type(field.type)} |" for field in schema or ()),
        shape=f"{spec['grid_height']} x {spec['grid_width']} tokens" if spec["grid_height"] else _VARYING,
        last_code=spec["codebook_size"] - 1,
        fingerprint=job["fingerprint"],
        weights=identity["weights"],
        model=job["config"]["model"]["path"],
        recipe=_recipe(identity["image"]),
        precision=identity["precision"],
        sources=_sources(job, summary),
        load=_load(job),
    )


def _load(job: Mapping[str, Any]) -> str:
    """The lines that load the model; `VQModel` is the family of those that name none."""
    profile, model = job["identity"]["model"], job["config"]["model"]
    told = {name: model.get(name) for name in ("subfolder", "revision")}
    told["value_range"] = "0..1" if profile.get("value_range") == "0..1" else None
    options = "".join(f', {name}="{value}"' for name, value in told.items() if value)
    if "family" not in profile:
        head, call = "from pipeline.model import VQModel\n", f'VQModel.from_pretrained("{model["path"]}"{options})'
    else:
        head = "from pipeline.encoding import ModelConfig\nfrom pipeline.tokenizers import load_tokenizer\n"
        leave = ", allow_torchscript=True" if model.get("allow_torchscript") else ""
        call = f'load_tokenizer(ModelConfig(path="{model["path"]}"{options}{leave}))'
    return f"{head}\nmodel = {call}"


def sources_of(shards: Iterable[str]) -> dict[str, int]:
    """Folders of shards, by their URLs, and how many of these lie in each."""
    return dict(sorted(Counter(url.rpartition("/")[0] for url in shards).items()))


def _sources(job: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Where the shards lie; as the first command named them, if the accounts are of a run at work."""
    folders = [f"`{folder}` ({count:,})" for folder, count in summary.get("sources", {}).items()]
    more = [f"and {len(folders) - _MOST_SOURCES:,} more folders"] if len(folders) > _MOST_SOURCES else []
    return ", ".join(folders[:_MOST_SOURCES] + more or [f"`{source}`" for source in job["config"]["shards"]])


def _metadata(summary: Mapping[str, Any], schema: Any, files: str, export: Mapping[str, int] | None) -> dict[str, Any]:
    rows, names = summary["rows"], schema.names if schema else []
    tasks = ["unconditional-image-generation", *(["text-to-image"] if "caption" in names else [])]
    found: dict[str, Any] = {
        "pretty_name": "Visual tokens",
        "license": "unknown",
        "task_categories": tasks,
        "size_categories": [_SIZES[max(0, min(len(str(rows)) - 3, len(_SIZES) - 1))]],
        "tags": ["visual-tokens", "tokenmill"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
    }
    if schema:
        found["dataset_info"] = {"features": [_feature(field) for field in schema]}
    if schema and export:
        split = {"name": "train", "num_bytes": export["num_bytes"], "num_examples": rows}
        sizes = {"download_size": export["download_size"], "dataset_size": export["num_bytes"]}
        found["dataset_info"] |= {"splits": [split], **sizes}
    return found


def _feature(field: Any) -> dict[str, Any]:
    """A column as `datasets` declares it."""
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        return {"name": field.name, "list": _dtype(kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"name": field.name, "list": _dtype(kind.value_type)}
    return {"name": field.name, "dtype": _dtype(kind)}


def _dtype(kind: Any) -> str:
    """The name that `datasets` has for an Arrow type."""
    if pa.types.is_dictionary(kind):
        return _dtype(kind.value_type)
    return {"float": "float32", "double": "float64", "halffloat": "float16"}.get(str(kind), str(kind))


def _type(kind: Any) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} x {_dtype(kind.value_type)}"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_dtype(kind.value_type)}"
    return _dtype(kind)


def _recipe(image: Mapping[str, Any]) -> str:
    """The recipe and all of its plain parameters."""
    plain = {name: value for name, value in image.items() if isinstance(value, str | int | float)}
    rest = ", ".join(f"{name} {value}" for name, value in sorted(plain.items()) if name != "recipe")
    return f"{image['recipe']} ({rest})"
