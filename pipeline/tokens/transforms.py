"""What a training code commonly does to a batch before its model sees it. Each is a function from batch to batch.

TokenDataset(url, transforms=[Offset(50_000), Prepend(49_999), Captions(tokenizer)])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import UsageError
from pipeline.tokens.columns import NO_NUMBER

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Offset:
    """Shift the tokens behind another vocabulary, such as that of the text.

    Attributes:
        by: added to every token.
    """

    by: int

    def __call__(self, batch: Batch) -> Batch:
        return batch | {"tokens": batch["tokens"] + self.by}


@dataclass(frozen=True, slots=True)
class Prepend:
    """Put one token before all others: [B, T] becomes [B, T + 1].

    Attributes:
        token: its number, say of BOS; None puts the row's `label` there, moved by `offset`, as class-conditional
            models want it.
        offset: added to the label.
        missing: the token of a row that has no label, as it is; such rows are refused if None.
    """

    token: int | None = None
    offset: int = 0
    missing: int | None = None

    def __call__(self, batch: Batch) -> Batch:
        """The batch with longer rows.

        Raises:
            UsageError: rows have no label, and `missing` does not say what stands for it.
        """
        tokens = batch["tokens"]
        if self.token is None:
            first = self._labels(batch["label"]).to(tokens.dtype)[:, None]
        else:
            first = torch.full((len(tokens), 1), self.token, dtype=tokens.dtype)
        return batch | {"tokens": torch.cat([first, tokens], dim=1)}

    def _labels(self, labels: torch.Tensor) -> torch.Tensor:
        absent = labels == NO_NUMBER
        if self.missing is None:
            if count := int(absent.sum()):
                raise UsageError(
                    f"{count} of the {len(labels)} rows of a batch have no label; give Prepend(missing=TOKEN), or "
                    "leave such samples out of the run"
                )
            return labels + self.offset
        return torch.where(absent, self.missing, labels + self.offset)


@dataclass(frozen=True, slots=True)
class Captions:
    """Tokenize the captions of a batch at once.

    Attributes:
        tokenizer: from a list of B texts to whatever the training code wants; picklable if there are workers.
        missing: stands for a caption that is not there.
        column: of the texts.
        into: name of the result in the batch.
    """

    tokenizer: Callable[[Sequence[str]], Any]
    missing: str = ""
    column: str = "caption"
    into: str = "caption_tokens"

    def __call__(self, batch: Batch) -> Batch:
        texts = [self.missing if text is None else text for text in batch[self.column]]
        return batch | {self.into: self.tokenizer(texts)}
