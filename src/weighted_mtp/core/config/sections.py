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
    Share,
    UnitInterval,
)

PipelineName = Literal["baseline", "ntp", "critic", "verifiable", "rho1"]


class Architecture(Section):
    """Shape of a model trained from scratch; the vocabulary size comes from the tokenizer.

    Attributes:
        dim: model width.
        n_layers: transformer blocks, prediction heads included.
        n_heads: attention heads.
        n_kv_heads: key/value heads; null for as many as attention heads.
        n_future_tokens: prediction heads, the next-token head included.
        multiple_of: round the feed-forward width up to a multiple of this.
        ffn_dim_multiplier: factor of the feed-forward width; null for 1.
        norm_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary frequencies.
        max_seq_len: nominal context length in tokens; the model has twice as many positions.
        tie_embeddings: share the weights of embedding and unembedding.
    """

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
    """Initial weights: a checkpoint, or random ones of a given shape.

    Attributes:
        path: run, checkpoint, model directory, or ORG/NAME on the Hugging Face hub.
        init_std: standard deviation of random initial weights.
        max_seq_len: replaces the checkpoint's own nominal context length, in tokens, to train on
            longer rows; the model has twice as many positions.
        rope_theta: replaces the checkpoint's own base of the rotary frequencies.
        add_heads: prediction heads to add to a checkpoint that has the next-token head only. Each
            begins as a copy of its last block.
        head_start: `copy` leaves added heads like that; `fit` first fits their last projection to
            what the next-token head says later, on about 16,000 positions of the training data.
    """

    path: Path | None = None
    architecture: Architecture | None = None
    init_std: PositiveFloat = 0.02
    max_seq_len: PositiveInt | None = None
    rope_theta: PositiveFloat | None = None
    add_heads: Annotated[PositiveInt, Field(le=64)] | None = None
    head_start: Literal["copy", "fit"] = "copy"

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
            if self.add_heads is not None:
                raise ValueError(
                    "model.add_heads adds heads to a checkpoint; from scratch, set "
                    "model.architecture.n_future_tokens"
                )
        return self


class TokenizerConfig(Section):
    """Tokenizer of the model.

    Attributes:
        kind: `auto` uses the tokenizer stored with the checkpoint, `micro` a small BPE shipped with
            the package.
        path: file or directory of the tokenizer, or anything that `model.path` accepts; null for
            the one of `model.path`.
    """

    kind: Literal["auto", "bytes", "micro", "sentencepiece", "huggingface"] = "auto"
    path: Path | None = None


class ValueConfig(Section):
    """Value head and its training.

    Attributes:
        head_type: linear layer, or MLP.
        loss: `mse` to the TD targets, or `pairwise` −log σ(V̄⁺ − V̄⁻) over pairs of a problem
            (critic only).
        coef: factor of the value loss, added to the language-model loss (verifiable).
        gamma: discount factor of the value targets.
        lam: λ of the value targets; with gamma 1, 1 is Monte Carlo: every target is the reward.
        clip: maximum distance of a target from the current value; null for no limit.
        huber: error at which the squared loss becomes linear; null for squared everywhere.
        learning_rate: learning rate of the value head; null for `training.learning_rate`.
        trunk: what a critic trains besides the head: nothing, the last `top_blocks` blocks of the
            next-token path, or everything (critic only, also as a first stage).
        top_blocks: blocks trained with `trunk` top (critic only).
        lm_coef: factor of the language-model loss on `lm_rows` during critic training; from
            scratch, the trunk has to learn to read. 0 runs no prediction head (critic only).
        lm_rows: rows of the language-model loss (critic only).
        gradient_to_trunk: propagate the value loss into the trunk; null for true in the critic and
            false in verifiable.
        max_pairs_per_problem: maximum pairs of one problem per epoch with the pairwise loss.
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
        gamma: discount factor of the advantages A.
        lam: λ of the advantages A (GAE).
        final_lam: λ at the end of training; null keeps `lam`.
        lam_hold: fraction of training before λ starts to change.
        lam_shape: shape of the change of λ.
        beta: temperature; smaller values spread the weights more.
        min_weight: smallest token weight.
        max_weight: largest token weight.
        whiten: normalize A to mean 0 and standard deviation 1, by the statistics of the batch or by
            an exponential moving average.
        ema_decay: decay of the moving average of `whiten` ema, per step.
        renormalise: scale the weights to mean 1.
        rows: what decides between rows. `critic`: the weights as they are. `labels`: scale the
            weights of each row to mean 1 if it is labelled right and to mean `wrong_weight` if
            not, so that the critic decides within rows alone.
        wrong_weight: mean weight of a row labelled wrong, with `rows` labels.
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
    rows: Literal["critic", "labels"] = "critic"
    wrong_weight: UnitInterval = 0.1

    @model_validator(mode="after")
    def _ordered(self) -> TDConfig:
        if self.min_weight > self.max_weight:
            raise ValueError(
                f"objective.td.min_weight ({self.min_weight}) is above max_weight "
                f"({self.max_weight})"
            )
        return self


class Rho1Config(Section):
    """Token selection by Rho-1: excess loss over a reference model.

    Attributes:
        k_percent: fraction of tokens to keep; 0.6 keeps 60 %.
        mode: rank tokens by loss minus reference loss, by its absolute value, or by the loss alone
            (`difficult`, without a reference).
        first_head_always: train the next-token head on every token.
        reference_heads: compare head k with the reference's own head k (`same`; heads that the
            reference lacks are compared as by `next`), or with its next-token loss on the same
            token (`next`).
        reference: file of stored reference losses, from `weighted-mtp prepare reference-losses`.
        reference_model: run, checkpoint or model that scores each batch during training instead.
    """

    k_percent: Annotated[float, Field(gt=0, le=1)] = 0.6
    mode: Literal["signed", "absolute", "difficult"] = "signed"
    first_head_always: bool = False
    reference_heads: Literal["same", "next"] = "same"
    reference: Path | None = None
    reference_model: Path | None = None


class DistilConfig(Section):
    """What heads 2 to n are taught by objective distil: a sum of losses of head k at position t
    against head 1 at t + k − 1, which predicts the same token.

    Attributes:
        ce: factor of the cross-entropy with the data.
        hard: factor of the cross-entropy with the likeliest token of head 1.
        kl: factor of the Kullback-Leibler divergence of the head from head 1, times temperature².
        tv: factor of the total variation, 1 − Σ min(p, q): the probability that a drafted token is
            rejected.
        temperature: of both distributions in `kl` and `tv`.
        top_n: compare only so many of head 1's likeliest tokens in `kl`; null for all.
        beta: head k counts beta^(k − 1), scaled so that heads 2 to n sum to 1.
        vocabulary: compare only so many tokens, those that are most often a target in the training
            rows; null for all. Figures of a validation are always of all.
    """

    ce: NonNegativeFloat = 0.0
    hard: NonNegativeFloat = 0.0
    kl: NonNegativeFloat = 1.0
    tv: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 1.0
    top_n: PositiveInt | None = None
    beta: PositiveFloat = 0.6
    vocabulary: PositiveInt | None = None

    @model_validator(mode="after")
    def _teaches(self) -> DistilConfig:
        if self.ce + self.hard + self.kl + self.tv == 0:
            raise ValueError(
                "objective.distil: ce, hard, kl and tv are all 0; set one of them, e.g. "
                "objective.distil.kl=1"
            )
        if self.top_n is not None and self.kl == 0:
            raise ValueError(
                "objective.distil.top_n is a setting of kl, which is 0; leave it out, or set "
                "objective.distil.kl"
            )
        return self


class ObjectiveConfig(Section):
    """What is optimized.

    Attributes:
        name: objective that runs in the pipeline: a shipped one, one of an installed package, or
            code of your own as FILE.py:CLASS or MODULE:CLASS (training imports and runs it).
        options: settings that the objective itself defines: `surprise`, `top` (docs/weighting.md),
            or one from outside.
        rows: rows to learn from; null for the default of the objective.
        heads: prediction heads to train; null for all of the model.
        head_weights: coefficient c_k of each head in the loss; null for 1/n each.
        final_head_weights: coefficients at the end of training, reached linearly; null keeps
            `head_weights`.
        head_curriculum: `forward` adds heads one by one, `reverse` removes them. The coefficients
            of the active heads are rescaled to the sum of all.
        head_fractions: fraction of training at which each head after the first is added or removed;
            null for even spacing.
        head_positions: share of the positions, drawn anew each step, at which heads 2 … n learn.
            What they lose there counts 1/share, so that gradients are the same on average; the
            unembedding of the other positions is not computed.
        scope: compute batch statistics and token selection over one forward pass on all ranks, or
            over the whole optimizer step, which needs an additional scoring pass.
    """

    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)
    rows: Literal["correct", "all"] | None = None
    heads: PositiveInt | None = None
    head_weights: tuple[float, ...] | None = None
    final_head_weights: tuple[float, ...] | None = None
    head_curriculum: Literal["none", "forward", "reverse"] = "none"
    head_fractions: tuple[UnitInterval, ...] | None = None
    head_positions: Share = 1.0
    scope: Literal["micro_batch", "step"] = "micro_batch"
    value: ValueConfig = ValueConfig()
    td: TDConfig = TDConfig()
    rho1: Rho1Config = Rho1Config()
    distil: DistilConfig = DistilConfig()


class CriticStage(Section):
    """First stage of the verifiable pipeline: train a critic in the same command. Other settings
    are those of the main stage, without best checkpoints and early stopping.

    Attributes:
        steps: optimizer steps of the critic.
        lam: λ of the critic's value targets; 1 is Monte Carlo.
        learning_rate: learning rate of the critic; null for `training.learning_rate`.
        final_learning_rate: learning rate at the end of the stage; null for
            `training.final_learning_rate`.
    """

    steps: PositiveInt
    lam: UnitInterval = 1.0
    learning_rate: PositiveFloat | None = None
    final_learning_rate: NonNegativeFloat | None = None


class ReferenceStage(Section):
    """First stage of the rho1 pipeline: train the reference in the same command, by the `baseline`
    objective on correct rows. Other settings are those of the main stage, without best checkpoints
    and early stopping. A reference that is named takes the place of the stage.

    Attributes:
        steps: optimizer steps of the reference's training.
        learning_rate: peak learning rate of the reference; null for the main stage's.
        final_learning_rate: learning rate of its last step; null for the main stage's.
    """

    steps: PositiveInt
    learning_rate: PositiveFloat | None = None
    final_learning_rate: NonNegativeFloat | None = None


class EarlyStopping(Section):
    """Stop when the monitored figure no longer improves.

    Attributes:
        patience: validations without improvement after which training stops.
        min_delta: smallest change that counts as an improvement.
    """

    patience: PositiveInt
    min_delta: NonNegativeFloat = 0.0


class LoRAConfig(Section):
    """Adapters of `training.adapt` lora.

    Attributes:
        rank: columns of each adapter.
        alpha: an adapter is scaled by alpha / rank.
        dropout: probability with which an input of an adapter is dropped while training.
        rslora: scale by alpha / √rank instead.
        targets: matrices of the blocks that are adapted: `all-linear`, or names or last parts of
            names (wq, wk, wv, wo, w1, w2, w3; q_proj and so on).
        heads: train the extra heads whole (`full`), or by adapters too (`lora`).
        norms: train the norms too.
        embeddings: train embeddings and unembedding too.
    """

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Fraction = 0.0
    rslora: bool = False
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("all-linear",)
    heads: Literal["full", "lora"] = "full"
    norms: bool = False
    embeddings: bool = False


class TrainingConfig(Section):
    """Training loop and optimizer.

    Attributes:
        steps: optimizer steps.
        batch_size: rows per optimizer step, over all ranks and micro-batches.
        micro_batch_size: rows per forward pass on one rank.
        learning_rate: learning rate at the end of the warm-up.
        final_learning_rate: learning rate of the last step; unused by schedule `constant`.
        schedule: decay of the learning rate after the warm-up; wsd is warm-up, stable, decay.
        warmup_fraction: fraction of the steps in which the learning rate rises from 0.
        decay_fraction: fraction of the steps after the warm-up in which `wsd` decays.
        adapt: train everything that the objective trains (`full`); the extra prediction heads
            and the value head alone, with the trunk frozen (`heads`); or low-rank adapters of
            frozen matrices (`lora`, settings under `training.lora`).
        lora: size, scale and places of the adapters.
        frozen_dtype: format of frozen matrices where compute_dtype is bfloat16: `auto` is
            bfloat16 if they are stored in it, else float32. bfloat16 rounds them, in the saved
            checkpoints too.
        optimizer: AdamW, AdamW with a state of 8 bits (by torchao), or Muon for matrices with
            AdamW for the rest.
        betas: AdamW coefficients of the moving averages of gradient and squared gradient.
        weight_decay: decoupled weight decay.
        clip_norm: maximum norm of the gradient.
        loss_chunk_rows: tokens per chunk of the fused loss; null for chunks of 64 MiB of logits.
        activation_checkpointing: recompute block activations in the backward pass: `full` all of
            them, `selective` those that are cheap for their size. true means full, false none.
        validate_every: steps between validations.
        save_every: steps between checkpoints.
        keep_last: most recent checkpoints to keep.
        keep_best: best checkpoints to keep, by `monitor`.
        monitor: validation figure that decides which checkpoints are best and when to stop early.
        monitor_mode: whether a lower or a higher figure is better.
        max_skipped_steps: steps with a non-finite loss or gradient to skip before the run stops.
        log_every: steps between training records in metrics.jsonl.
        trackers: experiment trackers that receive the metrics of metrics.jsonl too.
        remote: URL of a directory (s3://BUCKET/NAME, gs://…, or any that fsspec supports) to which
            checkpoints are copied, and from which --resume fetches newer ones.
    """

    steps: PositiveInt = 1000
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-5
    final_learning_rate: NonNegativeFloat = 0.0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_fraction: Fraction = 0.03
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    adapt: Literal["full", "heads", "lora"] = "full"
    lora: LoRAConfig = LoRAConfig()
    frozen_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
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

    @property
    def drops(self) -> bool:
        """Whether adapters drop some of their inputs."""
        return self.adapt == "lora" and self.lora.dropout > 0
