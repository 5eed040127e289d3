"""The dataset card of OUTPUT: makes `datasets.load_dataset(OUTPUT)` work, and says what the tokens are."""

from collections.abc import Mapping
from typing import Any

_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: tokens/*.parquet
tags:
- visual-tokens
- tokenmill
---

# Visual tokens

{rows:,} rows of {height} x {width} tokens (codes 0 to {last_code}), made by Tokenmill from {shards:,} WebDataset
shards. {samples:,} samples: {tokenized:,} tokenized, {rejects:,} rejected (`rejects.parquet` says why).

| | |
|---|---|
| fingerprint | `{fingerprint}` |
| weights | `{weights}` |
| model | {model} |
| image recipe | {recipe} at {size} px, {interpolation}, decode {decode} |
| precision | {precision} |

`tokens` is row-major: `np.array(row["tokens"]).reshape({height}, {width})` gives the grid. Indices are raw: no BOS, no
offset. `job.json` holds the whole provenance.

```python
import datasets
tokens = datasets.load_dataset("path/or/repo", split="train")
```

Back to images, with the model named above:

```python
import torch
from pipeline.model import VQModel
model = VQModel.from_pretrained("the model")
indices = torch.tensor(tokens[0]["tokens"]).reshape(1, {height}, {width})
image = model.decode_indices(indices)    # [1, 3, H, W] in [-1, 1]
```
"""


def dataset_card(job: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The README.md of a run, from its job.json and summary.json."""
    identity, spec = job["identity"], job["spec"]
    image = identity["image"]
    return _CARD.format(
        rows=summary["rows"],
        samples=summary["samples"],
        tokenized=summary["tokenized"],
        rejects=summary["rejects"],
        shards=summary["shards"]["committed"],
        height=spec["grid_height"],
        width=spec["grid_width"],
        last_code=spec["codebook_size"] - 1,
        fingerprint=job["fingerprint"],
        weights=identity["weights"],
        model=job["config"]["model"]["path"],
        recipe=image["recipe"],
        size=image["size"],
        interpolation=image["interpolation"],
        decode=image["decode"],
        precision=identity["precision"],
    )
