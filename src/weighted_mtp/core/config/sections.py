"""The sections of a recipe: typed, strict, frozen (`recipe.py` reads and merges them)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, model_validator

from weighted_mtp.core.config.section import (
    Fraction,
    NonNegativeInt,
    PositiveInt,
    RemoteURL,
    Section,
    UnitInterval,
)

PipelineName = Literal["baseline", "ntp", "critic", "verifiable", "rho1"]


class Architecture(Section):
    """Shape of a model trained from scratch (the fields of `ModelArgs`; the vocabulary is the
    tokenizer's)."""

    dim: PositiveInt
    n_layers: Annotated[PositiveInt, Field(le=10_000)]
    n_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None
    n_future_tokens: PositiveInt = 4
    multiple_of: PositiveInt = 256
    ffn_dim_multiplier: PositiveFloat | None = None
    norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10000.0
    max_seq_len: PositiveInt = 2048
    tie_embeddings: bool = False


class ModelConfig(Section):
    """Where the weights come from: a checkpoint, or random ones of a given shape.

    Attributes:
        max_seq_len, rope_theta: override the checkpoint's own, to train on longer rows than it was
            made for. A model has twice `max_seq_len` positions.
    """

    path: Path | None = None
    architecture: Architecture | None = None
    init_std: PositiveFloat = 0.02
    max_seq_len: PositiveInt | None = None
    rope_theta: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.architecture is None):
            raise ValueError(
                "give one of model.path (a checkpoint) and model.architecture (from scratch): "
                "--set model.path=DIR, or --preset micro"
            )
        if self.architecture is not None:
            for name in ("max_seq_len", "rope_theta"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"model.{name} changes a checkpoint; from scratch, set "
                        f"model.architecture.{name}"
                    )
        return self


class TokenizerConfig(Section):
    """`auto` uses the tokenizer stored in the checkpoint; `micro` ships with the micro tasks."""

    kind: Literal["auto", "bytes", "micro", "sentencepiece", "huggingface"] = "auto"
    path: Path | None = None


class ValueConfig(Section):
    """The value head and how it learns.

    Attributes:
        loss: `mse` to the TD targets, or `pairwise` −log σ(V̄⁺ − V̄⁻) (critic only).
        coef: factor of the value loss beside the language-model loss (verifiable).
        lam: λ of the targets; with gamma 1, 1 is Monte Carlo: every state's target is the reward.
        clip: how far a target may lie from the present value. huber: the error beyond which the
            loss is linear.
        learning_rate: of the value head; None takes training's.
        trunk: what a critic trains besides its head: nothing, the `top_blocks` last blocks of the
            next-token path, or all of it.
        lm_coef: factor of the language-model loss on `lm_rows` while a critic is trained (from
            scratch its trunk must learn the language too); 0 runs no prediction head at all.
        gradient_to_trunk: whether the value loss reaches the trunk; None: in the critic yes, in
            verifiable no.
        max_pairs_per_problem: for the pairwise loss.

    `trunk`, `top_blocks` and the `lm_` settings are the critic's alone (also as a first stage).
    """

    head_type: Literal["linear", "mlp"] = "linear"
    loss: Literal["mse", "pairwise"] = "mse"
    coef: NonNegativeFloat = 0.5
    gamma: UnitInterval = 1.0
    lam: UnitInterval = 1.0
    clip: PositiveFloat | None = None
    huber: PositiveFloat | None = None
    learning_rate: PositiveFloat | None = None
    trunk: Literal["frozen", "top", "all"] = "frozen"
    top_blocks: PositiveInt = 2
    lm_coef: NonNegativeFloat = 0.0
    lm_rows: Literal["correct", "all"] = "correct"
    gradient_to_trunk: bool | None = None
    max_pairs_per_problem: PositiveInt = 4


class TDConfig(Section):
    """Token weights from the critic's TD errors: clamp(exp(A / beta), min_weight, max_weight).

    Attributes:
        lam: λ of the advantages A. final_lam: its final value, which it approaches along
            `lam_shape` after the fraction `lam_hold` of the training; None keeps it constant.
        whiten: scale A to mean 0 and standard deviation 1, by batch or running statistics.
        renormalise: scale the weights to mean 1.
    """

    gamma: UnitInterval = 1.0
    lam: UnitInterval = 0.95
    final_lam: UnitInterval | None = None
    lam_hold: UnitInterval = 0.0
    lam_shape: Literal["linear", "cosine"] = "linear"
    beta: PositiveFloat = 0.9
    min_weight: NonNegativeFloat = 0.1
    max_weight: PositiveFloat = 5.0
    whiten: Literal["none", "batch", "ema"] = "none"
    ema_decay: Fraction = 0.99
    renormalise: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> TDConfig:
        if self.min_weight > self.max_weight:
            raise ValueError(
                f"objective.td.min_weight ({self.min_weight}) is above max_weight "
                f"({self.max_weight})"
            )
        return self


class Rho1Config(Section):
    """Which tokens Rho-1 keeps, and where the reference's losses come from.

    Attributes:
        reference_heads: what head k is compared with: the reference's own head k (`same`; heads
            that the reference does not have are compared as by `next`), or its next-token loss on
            the same token.
        reference: stored losses (`weighted-mtp prepare reference-losses`).
        reference_model: a checkpoint that scores every batch online instead.
    """

    k_percent: Annotated[float, Field(gt=0, le=1)] = 0.6
    mode: Literal["signed", "absolute", "difficult"] = "signed"
    first_head_always: bool = False
    reference_heads: Literal["same", "next"] = "same"
    reference: Path | None = None
    reference_model: Path | None = None


class ObjectiveConfig(Section):
    """What is optimised.

    Attributes:
        name: a registered objective (the pipeline's own, or one that an installed package brings),
            or code of your own as FILE.py:CLASS or MODULE:CLASS, which training imports.
        options: settings that an objective declares for itself; those of the project have none.
        rows: which rows are learnt from; None leaves the choice to the objective.
        heads: how many heads are trained; None means all heads of the model.
        head_weights: c_k of each head in the loss; None means 1/n each.
        final_head_weights: their final values, reached linearly; None keeps them constant.
        head_curriculum: `forward` adds heads one by one, `reverse` drops them, at the fractions of
            the training given by `head_fractions` (one for each head after the first; None spreads
            them evenly). The active heads share the sum of all c_k in proportion to theirs, so
            that the size of the loss does not depend on how many are active.
        scope: what batch statistics and selections are computed over: one forward pass on all
            ranks, or the whole optimizer step (exact however it is split, at the cost of one more
            scoring pass).
    """

    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)
    rows: Literal["correct", "all"] | None = None
    heads: PositiveInt | None = None
    head_weights: tuple[float, ...] | None = None
    final_head_weights: tuple[float, ...] | None = None
    head_curriculum: Literal["none", "forward", "reverse"] = "none"
    head_fractions: tuple[UnitInterval, ...] | None = None
    scope: Literal["micro_batch", "step"] = "micro_batch"
    value: ValueConfig = ValueConfig()
    td: TDConfig = TDConfig()
    rho1: Rho1Config = Rho1Config()


class CriticStage(Section):
    """Train a critic first, in the same command. Other settings are those of the main stage,
    except for best checkpoints and early stopping, which only the main stage has.

    Attributes:
        lam: λ of the critic's targets; 1 is Monte Carlo, as in the critic recipe.
    """

    steps: PositiveInt
    lam: UnitInterval = 1.0
    learning_rate: PositiveFloat | None = None
    final_learning_rate: NonNegativeFloat | None = None


class ReferenceStage(Section):
    """Train Rho-1's reference first, in the same command, by the `baseline` objective on correct
    rows; what is not given is as in the main stage, but for best checkpoints and early stopping,
    which that one has alone.

    Attributes:
        steps: of the reference's training.
        learning_rate, final_learning_rate: of it; None takes the main stage's.
    """

    steps: PositiveInt
    learning_rate: PositiveFloat | None = None
    final_learning_rate: NonNegativeFloat | None = None


class EarlyStopping(Section):
    """Stop if the monitored figure has not improved by `min_delta` for `patience` validations."""

    patience: PositiveInt
    min_delta: NonNegativeFloat = 0.0


class TrainingConfig(Section):
    """The loop. Batch sizes count rows; `batch_size` is one optimizer step over all ranks.

    Attributes:
        schedule: from `learning_rate`, where the warm-up ends, to `final_learning_rate`, which the
            last step uses exactly; `constant` stays at `learning_rate` and has no final rate. The
            formulas are in `pipelines.training.optimization.learning_rate`.
        decay_fraction: the fraction of the steps after the warm-up in which the `wsd` schedule
            (warm-up, stable, decay) decays. The last step always has the final rate.
        monitor: the validation figure that ranks checkpoints and decides about early stopping.
        max_skipped_steps: how many steps with a non-finite loss or gradient are skipped at most.
        activation_checkpointing: recompute the blocks in the backward pass instead of storing their
            activations: `full` all, `selective` what is cheap to compute for its size. Older
            recipes have false (`none`) and true (`full`).
        trackers: where metrics go besides metrics.jsonl.
        remote: URL of a directory (s3://BUCKET/NAME, gs://…, any that fsspec knows) to which
            checkpoints are copied as well, and from which --resume fetches newer ones.
    """

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-5
    final_learning_rate: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_fraction: Fraction = 0.03
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.1
    clip_norm: PositiveFloat = 1.0
    loss_chunk_rows: PositiveInt | None = None
    activation_checkpointing: Annotated[
        Literal["none", "selective", "full"],
        BeforeValidator(lambda x: ("full" if x else "none") if isinstance(x, bool) else x),
    ] = "none"
    validate_every: PositiveInt = 100
    save_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    keep_best: NonNegativeInt = 0
    monitor: str = "loss"
    monitor_mode: Literal["min", "max"] = "min"
    early_stopping: EarlyStopping | None = None
    max_skipped_steps: NonNegativeInt = 10
    log_every: PositiveInt = 1
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    remote: RemoteURL | None = None
