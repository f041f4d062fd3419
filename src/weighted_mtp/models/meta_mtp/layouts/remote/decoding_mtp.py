"""Lossless self-speculative decoding with the heads of modeling_mtp.py.

Every pass reads the token that was decided last and the drafts of heads 2 … n behind it; head 1
verifies the drafts, and the heads draft again from the last token that was kept. Rows of a batch
keep different numbers of drafts: rejected tokens stay in the cache, hidden by the mask, until all
rows are past them.

Letters: B batch, K tokens of a window, T cached tokens, V vocabulary.
"""

import torch
from transformers import DynamicCache
from transformers.generation.utils import GenerateDecoderOnlyOutput

IGNORES_TOKENS = {"TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"}
IGNORES_TOKENS |= {"MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper"}


def unsupported(model, input_ids, logits_processor, generation_config, **kwargs):
    """The setting under which drafts cannot be verified; None if there is none."""
    names = {type(processor).__name__ for processor in logits_processor}
    asked, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    own = asked is not None and not torch.equal(asked * mask, (mask.cumsum(1) - 1) * mask)
    past, attention = kwargs.get("past_key_values"), model.config._attn_implementation
    wrong = {
        "synced_gpus": kwargs.get("synced_gpus"),
        "guidance_scale": "UnbatchedClassifierFreeGuidanceLogitsProcessor" in names,
        "position_ids": own,
        "inputs_embeds": kwargs.get("inputs_embeds") is not None,
        "past_key_values": past is not None and past.get_seq_length() > 0,
        f"attn_implementation={attention!r}": attention not in ("eager", "sdpa"),
    }
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        asked = getattr(generation_config, name, False)
        wrong[name] = asked and generation_config.return_dict_in_generate
    return next((name for name, is_set in wrong.items() if is_set), None)


@torch.no_grad()
def speculate(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    synced_gpus=False,
    streamer=None,
    attention_mask=None,
    **kwargs,
):
    device, limit, pad = input_ids.device, generation_config.max_length, 0
    if getattr(generation_config, "_pad_token_tensor", None) is not None:
        pad = int(generation_config._pad_token_tensor)
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    rows, ends, sent = input_ids.tolist(), [None] * len(input_ids), input_ids.shape[1]
    cache, window, drafts, q = DynamicCache(), input_ids, input_ids[:, :0], None
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    here = (mask.long().cumsum(1) - 1).masked_fill(mask == 0, -1)  # positions of the window
    cached = here[:, :0]  # [B, T] positions of the cached tokens, −1: not to be seen
    model.forward_passes = 0
    while True:
        cached, K = torch.cat([cached, here], 1), drafts.shape[1] + 1
        states, _ = model.head_states(
            input_ids=window,
            attention_mask=_mask(model, here, cached),
            position_ids=here.clamp(0, limit - 1),
            past_key_values=cache,
            use_cache=True,
        )
        model.forward_passes += 1
        first, read = model.unembed(states[0][:, -K:]).float(), drafts.tolist()
        scores = torch.stack(
            [
                _process(logits_processor, [r + d[:i] for r, d in zip(rows, read)], first[:, i])
                for i in range(K)
            ],
            1,
        )
        kept, token = _verify(scores, drafts, q, generation_config.do_sample)
        counts, live = kept.tolist(), _live(rows, ends, pads, limit)
        for b, last in enumerate(token.tolist()):
            for new in [*read[b][: counts[b]], last] if live[b] else ():
                rows[b].append(new)
                asked = torch.tensor([rows[b]], device=device)
                if ends[b] is None and bool(torch.as_tensor(stopping_criteria(asked, None)).all()):
                    ends[b] = len(rows[b])
                if (pads and ends[b]) or len(rows[b]) >= limit:
                    break
        live = _live(rows, ends, pads, limit)
        if streamer is not None:
            known = min((len(r) for r, on in zip(rows, live) if on or not pads), default=limit)
            known = min(known, max(map(len, rows)), limit if pads or None in ends else max(ends))
            for column in range(sent, known):
                streamer.put(torch.tensor([r[column] if column < len(r) else pad for r in rows]))
            sent = max(sent, known)
        if not any(live):
            break
        # Forget what was rejected: hide it, and cut what no row has kept.
        alive = torch.tensor(live, device=device)
        kept = torch.where(alive, kept, -1)
        T = cached.shape[1] - K
        cached[:, T:].masked_fill_(torch.arange(K, device=device) > kept[:, None], -1)
        if (longest := int(kept.max()) + 1) < K:
            cache.crop(longest - K)  # a negative number: how many to remove
            cached = cached[:, : T + longest]
        position = here[:, -K] + 1 + kept  # of the token that was decided last
        place = kept.clamp(min=0) + states[0].shape[1] - K
        chosen = torch.arange(len(rows), device=device)
        drafts, q = input_ids[:, :0], []
        room = max(limit - len(r) - 1 for r, on in zip(rows, live) if on)
        for state in states[1 : 1 + max(room, 0)]:
            prefixes = [r + d for r, d in zip(rows, drafts.tolist())]
            logits = model.unembed(state[chosen, place]).float()
            guess = _process(logits_processor, prefixes, logits)
            q.append(guess.softmax(-1))
            new = _draw(q[-1]) if generation_config.do_sample else guess.argmax(-1)
            drafts = torch.cat([drafts, new[:, None]], 1)
        newest = torch.tensor([[r[-1]] for r in rows], device=device)
        window = torch.cat([newest, drafts], 1)
        here = position[:, None] + torch.arange(window.shape[1], device=device)
    if streamer is not None:
        streamer.end()
    length = max(e or 0 for e in ends) or max(map(len, rows))
    ids = [(row + [pad] * length)[:length] for row in rows]
    sequences = torch.tensor(ids, device=device)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache)
    return sequences


def _mask(model, here, cached):
    """Additive `[B, 1, K, T]`: a token sees those at its own and earlier positions."""
    key, query = cached[:, None, None, :], here[:, None, :, None]
    allowed = (key >= 0) & (key <= query)
    if getattr(model.config, "sliding_window", None) is not None:
        allowed &= key > query - model.config.sliding_window
    blocked = torch.finfo(model.dtype).min
    return torch.zeros_like(allowed, dtype=model.dtype).masked_fill(~allowed, blocked)


def _live(rows, ends, pads, limit):
    """Which rows go on. Without an end-of-sequence token `generate` pads nothing: rows that have
    ended are continued until all have."""
    if pads:
        return [end is None for end in ends]
    last = limit if None in ends else max(ends)
    return [len(row) < last for row in rows]


def _process(processors, prefixes, scores):
    """Scores `[B, V]` of the token after each prefix, as `generate` would have them."""
    if all(type(p).__name__ in IGNORES_TOKENS for p in processors):
        return processors(None, scores) if len(processors) else scores
    ids = [torch.tensor([prefix], device=scores.device) for prefix in prefixes]
    B = len(ids)
    if len({len(prefix) for prefix in prefixes}) == 1:
        return processors(torch.cat(ids), scores)
    # Some hold a value for each row (lengths of padding): every row is asked about in its place.
    asked = [processors(x.expand(B, -1), row.expand(B, -1).clone()) for x, row in zip(ids, scores)]
    return torch.stack([found[b] for b, found in enumerate(asked)])


def _draw(p):
    return torch.multinomial(p, 1).squeeze(1)


def _verify(scores, drafts, q, sampled):
    """How many drafts each row keeps, and the token that comes after them.

    Sampled: draft d is kept with probability min(1, p(d) / q(d)), and replaced by a draw from
    max(0, p − q), so that tokens have distribution p (Leviathan et al. 2023, arXiv 2211.17192).
    """
    B, rows = len(scores), torch.arange(len(scores), device=scores.device)
    if not sampled:
        best = scores.argmax(-1)
        kept = (best[:, :-1] == drafts).long().cumprod(1).sum(1)
        return kept, best[rows, kept]
    p = scores.softmax(-1)
    if drafts.shape[1] == 0:
        return torch.zeros(B, dtype=torch.long, device=p.device), _draw(p[:, 0])
    q, place = torch.stack(q, 1), drafts[..., None]
    at = p[:, :-1].gather(2, place).squeeze(2)
    accepted = torch.rand_like(at) * q.gather(2, place).squeeze(2) < at
    kept = accepted.long().cumprod(1).sum(1)
    left = torch.cat([(p[:, :-1] - q).clamp(min=0), p[:, -1:]], 1)[rows, kept]
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, p[rows, kept])
    return kept, _draw(left)
