"""How a prior is trained."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.prior.sampling import Sampler

# What may change between a training and its continuation: these do not decide the weights (the last but for rounding).
_FREE = {"temperature", "top_k", "guidance", "rounds", "choice_temperature", "pictures", "device"}


class PriorConfig(BaseModel):
    """How a prior is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["gpt", "maskgit"] = Field(
        "gpt", description="gpt: token after token, causal; maskgit: hidden tokens from all others"
    )
    dim: int = Field(128, ge=8, description="channels of the transformer; a multiple of 4 * heads")
    layers: int = Field(4, ge=1, description="of the transformer")
    heads: int = Field(4, ge=1, description="of the attention")
    dropout: float = Field(0.1, ge=0, lt=1, description="of embeddings and residual branches, while training")
    condition: Literal["none", "label"] = Field("none", description="label: on the column of that name; none")
    condition_dropout: float = Field(
        0.1, ge=0, lt=1, description="part of the rows that are trained on without their condition, for guidance"
    )
    hold_out: float = Field(0.2, gt=0, lt=1, description="part of the samples that is not trained on but measured on")
    hold_out_by: str = Field(
        "key",
        description="what is held out together: samples with the same value of this column, or of this field of the "
        "JSON sidecar, such as meta.photo",
    )
    hold_out_rows: int = Field(1000, ge=1, description="held-out rows that are measured on, the first ones (rows)")
    view: int | Literal["all", "one"] = Field(
        "one", description="views of a sample in an epoch: all, one (another each time), or the one of this number"
    )
    steps: int = Field(400, ge=1, description="optimizer steps")
    batch_size: int = Field(8, ge=1, description="rows of a step; fewer where some of them are held out (rows)")
    learning_rate: float = Field(2e-3, gt=0, description="peak; warmed up linearly, then cosine to zero")
    warmup_steps: int = Field(20, ge=0, description="steps of the linear warm-up")
    weight_decay: float = Field(0.1, ge=0, description="of AdamW, on matrices but embeddings")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="bf16: products in bfloat16 (autocast), weights stay float32; auto: bf16 on CUDA"
    )
    report_interval: int = Field(20, ge=1, description="steps between reports")
    checkpoint_interval: int = Field(100, ge=1, description="steps between checkpoints, held-out figures and pictures")
    pictures: int = Field(16, ge=1, description="samples drawn at each checkpoint")
    temperature: float = Field(1.0, gt=0, description="of the samples; below 1: more of the likely")
    top_k: int = Field(0, ge=0, description="samples use the k most likely codes; 0: all")
    guidance: float = Field(1.0, ge=0, description="scale of classifier-free guidance of the samples; 1: none")
    rounds: int = Field(12, ge=1, description="in which maskgit reveals a sample")
    choice_temperature: float = Field(4.5, ge=0, description="randomness of what maskgit keeps in each round")
    seed: int = Field(0, ge=0, description="of weights, order, split, masks and samples")
    device: str = Field("auto", description="torch device; auto: CUDA if there is one, else the CPU")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dim % (4 * self.heads):
            raise ValueError(f"dim must be a multiple of 4 * heads ({4 * self.heads}), got {self.dim}")
        if self.guidance != 1 and (self.condition == "none" or not self.condition_dropout):
            raise ValueError("guidance must be 1 without a condition or without condition_dropout")
        return self

    @property
    def sampler(self) -> Sampler:
        """How samples are drawn."""
        return Sampler(self.temperature, self.top_k, self.guidance, self.rounds, self.choice_temperature)

    def identity(self) -> dict[str, Any]:
        """What decides the weights and the log, as JSON: a training goes on only under the same."""
        return self.model_dump(mode="json", exclude=_FREE)
