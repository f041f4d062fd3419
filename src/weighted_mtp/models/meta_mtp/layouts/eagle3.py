"""Head 2 as an EAGLE-3 speculator, which serving engines draft with.

An EAGLE-3 step reads, at position t, the target model's hidden states of three layers and the
embedding of token t + 1, and proposes token t + 2. Head 2 reads the trunk's state at t and predicts
the same token, so it is such a step exactly: `fc` picks the trunk's state of the three, and the
half of q, k and v that the embedding meets is zero. A second step would feed the head its own
output, which it never learnt: one draft token at a time.

Two forms of the same tensors: `eagle3`, which the engines' own configurations describe, and
`speculators` (vLLM), whose configuration names the target model too and whose block is called
`layers.0` instead of `midlayer`.

Letters: D model width, V vocabulary, H attention heads, L blocks that transformers counts.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighted_mtp.core.errors import UserError
from weighted_mtp.models.meta_mtp.args import ModelArgs
from weighted_mtp.models.meta_mtp.layouts.hf_config import HEADS_KEY, SUMS_KEY, write_config
from weighted_mtp.models.meta_mtp.layouts.huggingface import hf_name, in_hf_order
from weighted_mtp.models.meta_mtp.layouts.json_file import write_json
from weighted_mtp.models.meta_mtp.layouts.source import common_format, formats_of
from weighted_mtp.models.meta_mtp.layouts.tensor_files import write_safetensors_file

if TYPE_CHECKING:  # describing a checkpoint must not wait for PyTorch
    from torch import Tensor

    from weighted_mtp.models.meta_mtp.transformer import Transformer

_AUX_STATES = 3


@dataclass(frozen=True)
class Speculator:
    """What to write, and for whom.

    Attributes:
        form: "eagle3" or "speculators"; also the name of the folder inside the base export.
        engine: "vllm", "sglang" or "llamacpp"; they number the trunk's layers differently.
        base: path or hub name of the base export, for commands and for the `speculators` form.
        draft_ids: the tokens that may be drafted, ascending; None: all V.
    """

    form: str = "eagle3"
    engine: str = "vllm"
    base: str = "."
    draft_ids: tuple[int, ...] | None = None

    @property
    def folder(self) -> str:
        """Path of the speculator, which stands in the base export."""
        return str(Path(self.base) / self.form)

    @property
    def command(self) -> str:
        """The shell commands that serve the base export with this speculator."""
        return serve_command(self.base, self.folder, self.form, self.engine)


def serve_command(
    base: str, speculator: str, form: str = "eagle3", engine: str = "vllm", tokens: int = 1
) -> str:
    """The shell commands, a line each, that serve a base export with its speculator.

    Args:
        base: folder, or hub name, of the export that `--to hf` or `--to eagle3` wrote.
        speculator: folder of the speculator.
        form: "eagle3" or "speculators".
        engine: "vllm", "sglang" or "llamacpp".
        tokens: draft tokens a step; head 2 gives one.
    """
    target, draft = shlex.quote(base), shlex.quote(speculator)
    if engine == "sglang":
        return (
            f"python -m sglang.launch_server --model-path {target} --speculative-algorithm EAGLE3 "
            f"--speculative-draft-model-path {draft} --speculative-num-steps {tokens} "
            f"--speculative-eagle-topk 1 --speculative-num-draft-tokens {tokens + 1}"
        )
    if engine == "llamacpp":
        return (
            f"python convert_hf_to_gguf.py {target} --outfile base.gguf\n"
            f"python convert_hf_to_gguf.py {draft} --target-model-dir {target} "
            "--outfile draft.gguf\n"
            "llama-server -m base.gguf -md draft.gguf --spec-type draft-eagle3 "
            f"--spec-draft-n-max {tokens}"
        )
    if form == "speculators":
        return f"vllm serve {draft}"
    settings = {"method": "eagle3", "model": speculator, "num_speculative_tokens": tokens}
    return f"vllm serve {target} --speculative-config {shlex.quote(json.dumps(settings))}"


def aux_layers(args: ModelArgs, engine: str) -> list[int]:
    """Ids of the three hidden states that the engine hands over, ascending; the last one is the
    trunk's output.

    vLLM and llama.cpp count what *enters* a block, SGLang adds one to what it is told.
    """
    trunk = args.n_layers - args.n_future_tokens  # the block L - 1 that the trunk's output enters
    last = trunk - 1 if engine == "sglang" else trunk
    return [last - 2, last - 1, last]


def check_speculator(args: ModelArgs, speculator: Speculator) -> None:
    """Raise `UserError` where the model has no head 2 that the engine could run."""
    where = f"--to {speculator.form}"
    family = args.family
    if family.name != "llama":
        raise UserError(
            f"{where}: the model's family is {family.name}, but the draft of an EAGLE-3 speculator "
            "is a Llama block; choose --to hf"
        )
    if args.n_future_tokens < 2:
        raise UserError(
            f"{where}: the model has the next-token head alone, and a speculator is made of head "
            "2; add heads (--add-heads 1) and train them first"
        )
    if family.qkv_bias or family.output_bias or family.mlp_bias:
        raise UserError(
            f"{where}: the model's projections have biases, which EAGLE-3 drafts do not; choose "
            "--to hf"
        )
    if speculator.form == "speculators" and speculator.engine != "vllm":
        raise UserError(f"{where}: only vLLM reads it; leave out --engine {speculator.engine}")
    if aux_layers(args, speculator.engine)[0] < 0:
        trunk = args.n_layers - args.n_future_tokens
        need = _AUX_STATES - (speculator.engine != "sglang")
        raise UserError(
            f"{where}: {speculator.engine} hands over three different layers' states, for which "
            f"the trunk needs {need} blocks, but it has {trunk}; choose --to hf"
        )
    ids = speculator.draft_ids
    if ids is not None and (not ids or ids[0] < 0 or ids[-1] >= args.vocab_size):
        bad = "is empty" if not ids else f"names ids outside 0 to {args.vocab_size - 1}"
        raise UserError(f"--draft-tokens {bad}; name tokens of the model's vocabulary")


def write_speculator(
    model: Transformer, directory: Path, speculator: Speculator, fields: Mapping[str, Any]
) -> None:
    """Write `config.json`, `model.safetensors` and a `README.md` into a new directory.

    Args:
        fields: token ids and generation settings (`read_config_fields`).
    """
    args = model.args
    state = speculator_tensors(model, speculator.draft_ids)
    draft = _draft_config(args, common_format(formats_of(model)), fields)
    ids = speculator.draft_ids
    shared = {
        "draft_vocab_size": args.vocab_size if ids is None else len(ids),
        "norm_before_residual": False,
        "target_hidden_size": args.dim,
    }
    layers = aux_layers(args, speculator.engine)
    if speculator.form == "speculators":
        config = _speculators_config(draft, {**shared, _LAYER_IDS: layers}, speculator.base)
        state = {key.replace("midlayer.", "layers.0."): value for key, value in state.items()}
    else:
        aux = {_LAYER_IDS: layers, "use_aux_hidden_state": True}
        # llama.cpp's converter reads the ids at the top, SGLang in `eagle_config`, vLLM in either.
        config = {**draft, **shared, _LAYER_IDS: layers, "eagle_config": aux}
    directory.mkdir()
    write_json(directory / "config.json", config)
    write_safetensors_file(state, directory / "model.safetensors")
    (directory / "README.md").write_text(_readme(speculator), encoding="utf-8")


_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


def speculator_tensors(
    model: Transformer, draft_ids: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Head 2 under EAGLE-3's names.

    `fc.weight` is `[D, 3D]`; q, k and v are `[·, 2D]`, embedding first. With `draft_ids`,
    `lm_head.weight` has these rows only, `d2t` (int64) says by how much a token's id exceeds its
    row, and `t2d` (bool, `[V]`) which tokens have one.
    """
    import torch

    args = model.args
    D, ones = args.dim, torch.ones_like(model.norm.weight.detach())
    eye = torch.eye(D, dtype=model.output.weight.dtype)
    state: dict[str, Tensor] = {
        "fc.weight": torch.cat([torch.zeros(D, (_AUX_STATES - 1) * D, dtype=eye.dtype), eye], 1),
        "midlayer.input_layernorm.weight": ones,  # of the embedding, which meets zeros
        "norm.weight": model.norm.weight.detach(),
    }
    for inner, parameter in model.extra_heads[0].named_parameters():
        name = f"layers.0.{inner}"
        key = hf_name(name, args).replace("model.layers.0.", "midlayer.")
        weight = in_hf_order(parameter.detach().cpu(), name, args)
        if inner.startswith(("attention.wq", "attention.wk", "attention.wv")):
            weight = torch.cat([torch.zeros_like(weight), weight], 1)
        # The norm before attention is that of the hidden state, not of the embedding.
        key = key.replace("input_layernorm", "hidden_norm")
        state[key] = weight
    output = model.output.weight.detach().cpu()
    if draft_ids is None:
        return {**state, "lm_head.weight": output}
    ids = torch.tensor(draft_ids)
    allowed = torch.zeros(args.vocab_size, dtype=torch.bool)
    allowed[ids] = True
    return {
        **state,
        "lm_head.weight": output[ids],
        "d2t": ids - torch.arange(len(ids)),
        "t2d": allowed,
    }


def _draft_config(
    args: ModelArgs, number_format: str, config_fields: Mapping[str, Any]
) -> dict[str, Any]:
    fields = write_config(args, number_format, config_fields)
    for key in (HEADS_KEY, SUMS_KEY):
        del fields[key]
    return {
        **fields,
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,  # lm_head is stored, embeddings are the target's
    }


def _speculators_config(
    draft: Mapping[str, Any], shared: Mapping[str, Any], base: str
) -> dict[str, Any]:
    layer = {**draft, "architectures": ["LlamaForCausalLM"]}
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": 1,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        **shared,
        "tie_word_embeddings": False,
        "dtype": draft["dtype"],
        "torch_dtype": draft["torch_dtype"],
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": base, "architectures": ["LlamaForCausalLM"]},
        },
    }


def _readme(speculator: Speculator) -> str:
    moved = (
        "`vllm serve` finds the base model by `speculators_config.verifier.name_or_path` in "
        "config.json; correct it when the folder moves.\n"
        if speculator.form == "speculators"
        else "Correct the paths when the folder moves.\n"
    )
    return (
        "# Speculator\n\n"
        "The second head of the model in the folder above, in EAGLE-3's layout. It proposes one "
        "token a step, which the\nmodel verifies: texts stay what they are without it.\n\n"
        f"```bash\n{speculator.command}\n```\n\n{moved}"
    )
