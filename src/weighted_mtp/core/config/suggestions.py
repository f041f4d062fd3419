"""The nearest recipe option to a misspelled or misplaced key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from weighted_mtp.core.config.options import ANY_NAME, recipe_options, section_titles, sections
from weighted_mtp.core.config.section import Section
from weighted_mtp.core.errors import simplified

_ALIASES = {
    "training.learning_rate": "lr maxlr",
    "training.final_learning_rate": "minlr",
    "training.batch_size": "bs batch globalbatchsize",
    "training.micro_batch_size": "mbs microbatch perdevicetrainbatchsize gradaccum "
    "gradientaccumulationsteps",
    "training.weight_decay": "wd decay",
    "training.steps": "maxsteps numsteps iters iterations epoch epochs numepochs numtrainepochs",
    "training.warmup_fraction": "warmup warmupsteps warmupratio",
    "training.schedule": "scheduler lrscheduler lrschedulertype",
    "training.optimizer": "optim opt",
    "training.clip_norm": "clip gradclip clipgrad maxgradnorm",
    "training.activation_checkpointing": "gradientcheckpointing checkpointing",
    "training.validate_every": "evalevery evalsteps evalinterval",
    "training.save_every": "savesteps saveinterval",
    "training.keep_last": "savetotallimit",
    "training.trackers": "reportto wandb mlflow tensorboard",
    "training.early_stopping.patience": "patience",
    "data.max_length": "seqlen maxlen maxseqlength contextlength blocksize",
    "data.train": "dataset trainfile trainpath",
    "data.validation": "eval val validationfile",
    "data.workers": "numworkers",
    "model.path": "modelpath modelnameorpath checkpoint",
    "model.architecture.dim": "hiddensize dmodel width",
    "model.architecture.n_layers": "layers numlayers numhiddenlayers depth",
    "model.architecture.n_heads": "nheads numattentionheads",
    "objective.heads": "numheads mtpheads",
    "objective.name": "loss",
    "objective.td.lam": "lam lambda lamda",
    "objective.td.gamma": "gamma",
    "objective.td.beta": "temperature",
    "objective.rho1.k_percent": "k kpercent topk",
    "runtime.compute_dtype": "dtype precision bf16 amp",
    "runtime.parallel": "fsdp ddp strategy",
    "runtime.compile": "torchcompile",
}
"""Names used elsewhere, simplified, for options that difflib cannot relate to them."""
ALIASES = {alias: key for key, aliases in _ALIASES.items() for alias in aliases.split()}
_REMARKS = {
    "epoch": "a run is counted in optimizer steps: epochs × rows / training.batch_size",
    "warmupsteps": "a fraction of the steps",
    "accum": "micro-batches per step follow from training.batch_size",
}


def suggest_key(place: Sequence[str], inside: type[Section] | None = None) -> str:
    """Return ` (did you mean KEY?)` for an unknown key, "" if no option is near.

    Args:
        place: parts of the key, from the root of a recipe or of the section `inside`.
    """
    if inside is not None:
        root = next((key for key, (section, _) in sections().items() if section is inside), None)
        if root is None:  # a section of another package
            return ""
        place = [*filter(None, root.split(".")), *place]
    key, remark = nearest_key(place)
    return f" (did you mean {key}?{remark})" if key else ""


def nearest_key(place: Sequence[str]) -> tuple[str, str]:
    """Return the option or section nearest to an unknown key, and a remark; "" if none is near."""
    *above, name = place
    word = simplified(name)
    if not word:
        return "", ""
    keys = [option.key for option in recipe_options()] + list(filter(None, section_titles()))
    alias = ALIASES.get(word, "")
    remark = next((f" {text}" for part, text in _REMARKS.items() if alias and part in word), "")
    leaf = alias.rpartition(".")[2]
    near = [key for key in keys if simplified(key.rpartition(".")[2]) in (word, simplified(leaf))]
    if above and not _below(near, above):  # a misspelled name is likelier than another section
        near = _close(word, _below(keys, above)) or near
    near = near or _close(word, keys)
    wanted = ".".join(above)
    near = [key for key in near if above and f".{key}".endswith(f".{wanted}.{leaf}")] or near
    if alias in near and not _below(near, above):
        return alias, remark
    if not near:
        return "", ""
    key = max(_below(near, above) or near, key=lambda key: _likeness(key, wanted, alias))
    return _as_given(key, above), remark if key == alias else ""


def _below(keys: Sequence[str], above: Sequence[str]) -> list[str]:
    """Keys in or below the section `above`; none for the root."""
    return [
        key
        for key in keys
        if above
        and len(key.split(".")) > len(above)
        and all(
            part in (ANY_NAME, given) for part, given in zip(key.split("."), above, strict=False)
        )
    ]


def _close(word: str, keys: Sequence[str]) -> list[str]:
    """Keys whose last part is the nearest to `word`."""
    names = {simplified(key.rpartition(".")[2]) for key in keys}
    near = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.7)
    return [key for key in keys if simplified(key.rpartition(".")[2]) in near]


def _likeness(key: str, wanted: str, alias: str) -> tuple[bool, float, bool, int]:
    """Rank options of one name: the alias, the section most like the one given, training's, the
    least deep one."""
    section = key.rpartition(".")[0]
    parts = section.split(".")
    endings = [".".join(parts[i:]) for i in range(len(parts))]
    like = max(difflib.SequenceMatcher(None, wanted, ending).ratio() for ending in endings)
    return key == alias, like if wanted else 0.0, section == "training", -key.count(".")


def _as_given(key: str, above: Sequence[str]) -> str:
    """Replace `*` by the name that was given there."""
    parts = key.split(".")
    names = [given if part == ANY_NAME else part for part, given in zip(parts, above, strict=False)]
    return ".".join([*names, *parts[len(names) :]])
