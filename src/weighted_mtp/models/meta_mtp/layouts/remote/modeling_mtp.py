"""Multi-token prediction for transformers: the model of its family, with extra heads.

`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` opens this class; without
`trust_remote_code` the same folder opens as the plain model. Written by `weighted-mtp convert`.

The trunk is every decoder layer but the last. The last layer is head 1 (the next token); heads
2 … n are layers of the same kind in `mtp/mtp_heads.safetensors`. All heads read the trunk's output
and share the final norm and the unembedding. Head k at position t predicts token t + k.

Letters: B batch, S sequence, n heads, V vocabulary.
"""

import copy
import inspect
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache
from transformers import LlamaForCausalLM as Base
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file, logging

from .decoding_mtp import speculate, unsupported

HEADS_FILE, VALUE_HEAD_FILE = "mtp/mtp_heads.safetensors", "mtp/value_head.safetensors"
GENERATE = '''"""Lossless self-speculative decoding with the model's own heads (decoding_mtp.py)."""

from transformers.utils import logging


def generate(inputs=None, model=None, **kwargs):
    if hasattr(model, "generate_with_heads"):
        return model.generate_with_heads(inputs, **kwargs)
    logging.get_logger(__name__).warning_once(
        "decoded without drafts: the model was opened without its heads (trust_remote_code=True)"
    )
    return type(model).generate(model, inputs, **kwargs)  # transformers 4 gives it this function
'''
NAMES = {  # in the heads file: in a decoder layer of transformers
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
FUSED = {  # layers that hold several of the above side by side (Phi-3)
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


class MTPForCausalLM(Base):
    _keys_to_ignore_on_load_missing = (r"mtp_heads\.",)  # `from_pretrained` reads them after that

    def __init__(self, config):
        super().__init__(config)
        layers, n = self.model.layers, getattr(config, "mtp_n_future_tokens", 1)
        self.mtp_heads = nn.ModuleList(copy.deepcopy(layers[-1]) for _ in range(n - 1))
        for index, head in enumerate(self.mtp_heads, len(layers)):
            head.self_attn.layer_idx = index  # its place in the cache
        self._draft, self._value_head_file = False, None

    # --- loading and saving ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        keys = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only")
        hub = {key: kwargs[key] for key in keys if kwargs.get(key) is not None}
        ignored = cls._keys_to_ignore_on_load_missing
        if transformers.__version__ < "5" and kwargs.get("device_map") is not None:
            cls._keys_to_ignore_on_load_missing = None  # else nothing is allocated to place
        try:
            found = super().from_pretrained(path, *args, **kwargs)
        finally:
            cls._keys_to_ignore_on_load_missing = ignored
        model = found[0] if isinstance(found, tuple) else found
        if len(model.mtp_heads):
            prefix = f"{kwargs['subfolder']}/" if kwargs.get("subfolder") else ""
            model._load_heads(load_file(cached_file(path, prefix + HEADS_FILE, **hub)))
            hub["_raise_exceptions_for_missing_entries"] = False  # most have none
            value_head = cached_file(path, prefix + VALUE_HEAD_FILE, **hub)
            model._value_head_file = Path(value_head).read_bytes() if value_head else None
        return found

    def save_pretrained(self, save_directory, *args, state_dict=None, push_to_hub=False, **kwargs):
        """Write the plain model of the family, the heads in `mtp/`, and this code. A value head
        that was in `mtp/` is written again, unchanged."""
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) leaves the heads behind; call "
                "model.push_to_hub(...)"
            )
        state = dict(self.state_dict() if state_dict is None else state_dict)
        heads = {key: state.pop(key) for key in list(state) if key.startswith("mtp_heads.")}
        super().save_pretrained(save_directory, *args, state_dict=state, **kwargs)
        if kwargs.get("is_main_process", True):
            self._save_rest(Path(save_directory), heads)

    def _save_rest(self, folder, heads):
        config = json.loads((folder / "config.json").read_text())
        config["architectures"] = [Base.__name__]  # what the weights are to other readers
        config.pop("mtp_sums", None)
        if heads:
            config["auto_map"] = {"AutoModelForCausalLM": "modeling_mtp.MTPForCausalLM"}
            for name in ("mtp", "custom_generate"):
                (folder / name).mkdir(exist_ok=True)
            for name in ("mtp/sums.json", VALUE_HEAD_FILE):  # of an export that was there
                (folder / name).unlink(missing_ok=True)
            save_file(self._stored_heads(heads), folder / HEADS_FILE, metadata={"format": "pt"})
            if self._value_head_file is not None:
                (folder / VALUE_HEAD_FILE).write_bytes(self._value_head_file)
            (folder / "custom_generate" / "generate.py").write_text(GENERATE)
            code = Path(inspect.getfile(MTPForCausalLM))
            for name in ("modeling_mtp.py", "decoding_mtp.py"):
                shutil.copyfile(code.with_name(name), folder / name)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def _rotary(self, name):
        """How many heads' rows a tensor has whose order differs between the two layouts."""
        config = self.config
        counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        return {**counts, "q_norm": 1, "k_norm": 1}.get(name.split(".")[-2], 0)

    def _reorder(self, x, heads, to_halves):
        """Rotated features: neighbouring pairs (stored) or first and second halves (in use)."""
        r = 2 * next(len(m.inv_freq) for m in self.modules() if hasattr(m, "inv_freq"))
        rows = x.reshape(heads, x.shape[0] // heads, -1)
        shape = (heads, r // 2, 2, -1) if to_halves else (heads, 2, r // 2, -1)
        rotated = rows[:, :r].reshape(shape).transpose(1, 2).flatten(1, 2)
        return torch.cat([rotated, rows[:, r:]], 1).reshape(x.shape)

    @torch.no_grad()
    def _load_heads(self, stored):
        device = next(self.model.layers[-1].parameters()).device
        for i, head in enumerate(self.mtp_heads):
            if next(head.parameters()).is_meta:  # transformers 4.5x leaves what it does not read
                head.to_empty(device=device)
            state, prefix = {}, f"extra_heads.{i}."
            for key in [key for key in stored if key.startswith(prefix)]:
                stem, _, leaf = key.removeprefix(prefix).rpartition(".")
                name, x = f"{NAMES[stem]}.{leaf}", stored.pop(key)
                state[name] = self._reorder(x, h, True) if (h := self._rotary(name)) else x
            for fused, parts in FUSED.items():
                if hasattr(head.get_submodule(fused.split(".")[0]), fused.split(".")[1]):
                    state[f"{fused}.weight"] = torch.cat([state.pop(f"{p}.weight") for p in parts])
            head.load_state_dict(state)  # every key, no other, and of the right shape
        if stored:
            raise ValueError(
                f"{HEADS_FILE} has {next(iter(stored))}, which the model has no place for"
            )

    def _stored_heads(self, state):
        found, config = {}, self.config
        d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
        sizes = {"self_attn.qkv_proj": [q, kv, kv], "mlp.gate_up_proj": 2}
        ours = {theirs: name for name, theirs in NAMES.items()}
        for key, x in state.items():
            _, i, inner = key.split(".", 2)
            stem, _, leaf = inner.rpartition(".")
            split = sizes.get(stem)
            parts = x.chunk(split) if isinstance(split, int) else x.split(split) if split else [x]
            for name, part in zip(FUSED.get(stem, (stem,)), parts):
                heads = self._rotary(f"{name}.{leaf}")
                part = self._reorder(part, heads, False) if heads else part
                found[f"extra_heads.{i}.{ours[name]}.{leaf}"] = part.detach().cpu().clone()
        return found

    # --- forward pass and loss -------------------------------------------------------------------

    def head_states(self, **inputs):
        """Run trunk and heads: the normalised state of each head, and the cache."""
        if inputs.get("past_key_values") is None and inputs.get("use_cache") is not False:
            inputs["past_key_values"] = DynamicCache()  # the family's own has no room for heads
        calls = []  # what the last layer is called with is what every head is called with
        hook = self.model.layers[-1].register_forward_pre_hook(
            lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        try:
            out = self.model(**inputs, return_dict=True)
        finally:
            hook.remove()
        (args, kwargs), states = calls[0], [out.last_hidden_state]
        for head in self.mtp_heads:
            by_model = getattr(self.model, "gradient_checkpointing", False) and self.training
            if by_model and not hasattr(head, "gradient_checkpointing"):  # transformers 4
                x = self.model._gradient_checkpointing_func(head.__call__, *args, **kwargs)
            else:
                x = head(*args, **kwargs)
            states.append(self.model.norm(x[0] if isinstance(x, tuple) else x))
        return states, out.past_key_values

    def unembed(self, state):
        return self.lm_head(state) / getattr(self.config, "logits_scaling", 1.0)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        return_all_heads=False,
        logits_to_keep=None,
        **kwargs,
    ):
        """The family's own forward pass; with `return_all_heads` the logits are `[B, S, n, V]`.

        With `labels` (equal to the tokens, −100 where there is no target) the loss is the mean over
        heads of the cross-entropy of head k at offset k.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {"position_ids": position_ids, "past_key_values": past_key_values}
        inputs["inputs_embeds"] = inputs_embeds
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        if labels is None and not return_all_heads:
            if logits_to_keep is not None:
                kwargs["logits_to_keep"] = logits_to_keep
            return super().forward(**inputs, **kwargs)
        total, as_dict = kwargs.pop("num_items_in_batch", None), kwargs.pop("return_dict", None)
        if labels is not None and past_key_values is None:
            kwargs.setdefault("use_cache", False)
        states, cache = self.head_states(**inputs, **kwargs)
        logits = [self.unembed(state) for state in states]
        loss = None if labels is None else self._loss(logits, labels, total)
        shown = torch.stack(logits, 2) if return_all_heads else logits[0]
        out = CausalLMOutputWithPast(loss=loss, logits=shown, past_key_values=cache)
        return out.to_tuple() if as_dict is False else out

    def _loss(self, logits, labels, total):
        losses = []
        for k, x in enumerate(logits, 1):
            target = labels[:, k:].to(x.device).flatten()
            x = x[:, : labels.shape[1] - k].flatten(0, 1).float()
            count = (target != -100).sum().clamp(min=1) if total is None else total
            losses.append(F.cross_entropy(x, target, ignore_index=-100, reduction="sum") / count)
        return torch.stack(losses).mean()

    # --- decoding --------------------------------------------------------------------------------

    def generate_with_heads(self, *args, **kwargs):
        """`generate`, with the heads drafting tokens that the next pass verifies.

        Greedy texts are those of `generate`; sampled tokens have the same distribution. Rows of a
        batch keep different numbers of drafts. Stopping criteria are asked row by row. What drafts
        cannot be verified under (beams, `output_scores`, …) is decoded as `generate` does.
        """
        self._draft = True
        try:  # of the class: transformers 5 puts custom_generate in the place of self.generate
            return type(self).generate(self, *args, **kwargs)
        finally:
            self._draft = False

    def _sample(self, input_ids, **kwargs):  # where `generate` decodes, greedily too
        if self._draft and (reason := unsupported(self, input_ids, **kwargs)) is None:
            return speculate(self, input_ids, **kwargs)
        if self._draft:
            logging.get_logger(__name__).warning(f"decoded without drafts, because of {reason}")
        return super()._sample(input_ids, **kwargs)
