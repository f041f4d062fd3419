"""What may change when a run is resumed, setting by setting, and with what consequence.

A change is silent, is allowed and reported with its consequence, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weighted_mtp.core.config.recipe import Recipe
from weighted_mtp.pipelines.training.objectives import find_objective
from weighted_mtp.pipelines.training.optimization import learning_rate


@dataclass(frozen=True)
class Resume:
    """A run, as it was saved and as it is to continue.

    Attributes:
        step: optimizer steps that are done.
    """

    saved: Recipe
    asked: Recipe
    step: int

    @property
    def following(self) -> str:
        """The first step that the new settings apply to, in words."""
        return f"from step {self.step + 1} on"


class Refused(str):
    """Why a key cannot change."""

    __slots__ = ()


Rule = Callable[[Resume], str | None]
"""The consequence of a change; `Refused` if it is not allowed, None if there is none to report."""


# --- consequences --------------------------------------------------------------------------------


def silent(_: Resume) -> None:
    """Allow a change that nothing learnt depends on."""


def told(words: str) -> Rule:
    """Report a fixed consequence; `{following}` is the first step it applies to."""
    return lambda resume: words.format(following=resume.following)


def refused(reason: str) -> Rule:
    """Refuse every change."""
    return lambda _: Refused(reason)


def _schedule(resume: Resume) -> str:
    """The rate of the next step under both recipes."""
    step, saved, asked = resume.step, resume.saved.training, resume.asked.training
    if step >= asked.steps:
        return "all steps are done"
    last = min(step, saved.steps - 1)
    before, now = learning_rate(last, saved), learning_rate(step, asked)
    words = f"the schedule is recomputed over {asked.steps} steps, "
    if last < step:
        return words + f"the learning rate goes from {before:.3g} (the run's last) to {now:.3g}"
    if before == now:
        return words + f"the learning rate of step {step + 1} stays {now:.3g}"
    return words + f"the learning rate of step {step + 1} changes from {before:.3g} to {now:.3g}"


def _steps(resume: Resume) -> str:
    if resume.asked.training.steps < resume.step:
        return Refused(f"{resume.step} steps are done already; set it to {resume.step} or more")
    objective, words = resume.asked.objective, _schedule(resume)
    if objective.head_curriculum != "none" or objective.final_head_weights is not None:
        words += "; so are the weights of the heads"
    if objective.td.final_lam is not None:
        words += "; so is λ"
    if resume.asked.data.sampling.strategy == "curriculum":
        words += "; the stages of data.sampling stay where they were planned when the run began"
    return words


def _value_rate(resume: Resume) -> str:
    saved, asked = (
        r.objective.value.learning_rate or r.training.learning_rate
        for r in (resume.saved, resume.asked)
    )
    return f"the value head's peak rate changes from {saved:.3g} to {asked:.3g}"


def _cut(resume: Resume) -> str | None:
    """How a step is cut matters only where something is decided over one forward pass."""
    objective = resume.saved.objective  # which cannot change
    if objective.scope != "micro_batch" or not find_objective(objective.name).pools(objective):
        return None
    return (
        f"objective.scope is micro_batch: what {objective.name} takes over a forward pass is taken "
        f"over other rows {resume.following}"
    )


def _length(resume: Resume) -> str:
    if resume.asked.data.source == "text":
        return Refused("the text is cut into other windows, so its place in the data is lost")
    length = resume.asked.data.max_length
    return f"the order of the rows stays, and they are cut at {length} tokens {resume.following}"


def _name(resume: Resume) -> str:
    """The file or module of an objective's class may move; the class stays."""
    saved, asked = resume.saved.objective.name, resume.asked.objective.name
    if ":" in saved and ":" in asked and saved.rpartition(":")[2] == asked.rpartition(":")[2]:
        return "its code is read from there; that it is the same is not checked"
    return _TWO_AIMS


def _options(resume: Resume) -> str:
    """The code of an objective may have got new options since the run was saved with all it had."""
    saved, asked = resume.saved.objective.options, resume.asked.objective.options
    if all(name in asked and asked[name] == value for name, value in saved.items()):
        return f"the objective has this option only since, and uses it {resume.following}"
    return _TWO_AIMS


_RATE = (
    "learning_rate",
    "final_learning_rate",
    "schedule",
    "warmup_fraction",
    "decay_fraction",
)
_OTHER_WEIGHTS = refused("the weights are those of the checkpoint")
_TWO_AIMS = Refused("the run would have followed two objectives")
_OTHER_AIM = refused(_TWO_AIMS)
_OTHER_ORDER = refused("the place in the data is a place in the order that it determines")
_OTHER_PROMPTS = refused("the model has learnt from other prompts so far")
_OTHER_IDS = refused("the model's tokens would mean something else")
_OTHER_ROWS = refused("the place in the data is a place in the rows that it determines")
_MOVED = told("its content is compared with what the run began with")
_ROUNDING = told("numbers are rounded in another way {following}")
_PLAIN = told("in force {following}")
_HELD_OUT = told("figures of validations are of other rows {following}")
_RANKING = told("the best validations so far are forgotten, as are the checkpoints kept for them")


def _section(name: str, keys: str, rule: Rule) -> dict[str, Rule]:
    return {f"{name}.{key}" if key else name: rule for key in keys.split() or [""]}


RULES: Mapping[str, Rule] = {
    "pipeline": _OTHER_AIM,
    **_section(
        "objective",
        "rows heads head_weights final_head_weights head_curriculum head_fractions scope",
        _OTHER_AIM,
    ),
    "objective.name": _name,
    "objective.options": _options,
    "objective.value.head_type": _OTHER_WEIGHTS,
    **_section(
        "objective.value",
        "loss coef gamma lam clip huber trunk top_blocks lm_coef lm_rows gradient_to_trunk",
        _OTHER_AIM,
    ),
    "objective.value.learning_rate": _value_rate,
    "objective.value.max_pairs_per_problem": _OTHER_ORDER,
    **_section(
        "objective.td",
        "gamma lam final_lam lam_hold lam_shape beta min_weight max_weight whiten ema_decay "
        "renormalise rows wrong_weight",
        _OTHER_AIM,
    ),
    "objective.head_positions": told("heads 2 to n learn at this share of positions {following}"),
    **_section("objective.rho1", "k_percent mode first_head_always reference_heads", _OTHER_AIM),
    **_section("objective.rho1", "reference reference_model", _MOVED),
    **_section("objective.distil", "ce hard kl tv temperature top_n beta vocabulary", _OTHER_AIM),
    **_section(
        "model",
        "path architecture init_std max_seq_len rope_theta add_heads head_start",
        _OTHER_WEIGHTS,
    ),
    **_section("tokenizer", "kind path", _OTHER_IDS),
    "data.source": _OTHER_ROWS,
    **_section("data", "train text.path", _MOVED),
    **_section("data", "validation text.validation_path micro.n_validation", _HELD_OUT),
    **_section(
        "data.micro",
        "families max_constant marked_names max_difficulty n_problems correct_per_problem "
        "incorrect_per_problem seed",
        _OTHER_ROWS,
    ),
    **_section("data.text", "key suffixes separator validation_fraction", _OTHER_ROWS),
    **_section(
        "data.sampling",
        "strategy n_samples correct_fraction bins weights stages length_balanced_pairs",
        _OTHER_ORDER,
    ),
    **_section("data", "template joint", _OTHER_PROMPTS),
    "data.max_length": _length,
    "data.packing": _cut,
    "data.states": told("what the trunk computes of a row is taken from there {following}"),
    **_section("data", "cache_dir workers processes pad_to_multiple", silent),
    "training.steps": _steps,
    "training.batch_size": told(
        "reading continues at the next row, with as many rows a step {following}; the learning "
        "rate is not rescaled"
    ),
    "training.micro_batch_size": _cut,
    **_section("training", " ".join(_RATE), _schedule),
    "training.optimizer": refused("the saved state is the other optimizer's"),
    "training.adapt": refused("the saved optimizer state is of other weights"),
    **_section(
        "training.lora",
        "rank alpha rslora targets heads norms embeddings",
        refused("the saved adapters are others"),
    ),
    "training.lora.dropout": told("another share of the adapters' inputs is dropped {following}"),
    "training.frozen_dtype": told("frozen weights are kept in another format {following}"),
    **_section("training", "betas weight_decay clip_norm", _PLAIN),
    **_section("training", "monitor monitor_mode", _RANKING),
    "training.early_stopping": told("validations without improvement so far count"),
    **_section(
        "training",
        "loss_chunk_rows activation_checkpointing validate_every save_every keep_last keep_best "
        "max_skipped_steps log_every trackers remote",
        silent,
    ),
    **_section("runtime", "compute_dtype tf32 fsdp.param_dtype fsdp.reduce_dtype", _ROUNDING),
    "runtime.seed": _OTHER_ORDER,
    **_section(
        "runtime",
        "device parallel timeout_minutes threads compile deterministic fsdp.reshard_after_forward "
        "fsdp.reduce_gradients fsdp.cpu_offload fsdp.shard_size",
        silent,
    ),
    "critic_stage": refused("the first stage may be done already"),
    "reference_stage": refused("the first stage may be done already"),
}
"""By key; what is below a key (the fields of an optional section) follows its rule."""
