"""Teach heads 2 … n what head 1 predicts, without ever holding the logits of all rows.

Head k at position t predicts token t + k, and so does head 1 at t + k − 1, which has read more:
with its distribution p as the teacher and head k's own q as the student, one forward pass has both.
Heads that draft for head 1 are accepted with probability Σ min(p, q), so what they should learn is
p, not the data. Per token, with coefficients that may be mixed:

    ce     −log q(token)            the data
    hard   −log q(argmax p)         head 1's choice, which greedy decoding checks
    kl     τ² · KL(p ‖ q)           p cut to its N likeliest tokens, if asked
    tv     1 − Σ min(p, q)          the probability of rejection itself

p and q of `kl` and `tv` are taken at temperature τ. Each has a gradient with respect to the logits
of the student alone:

    ce, hard: q − e     kl: τ (q − p)     tv: q · (m̄ − m) / τ,   m = [q < p],   m̄ = Σ m q

These sum to 0 over the vocabulary. The entry of the student's likeliest token, in which nearly
equal numbers may have been subtracted, is therefore replaced by minus the sum of the others: as
precise as they are, however confident teacher and student may be.

Over part of the vocabulary, p and q are those of its tokens alone, renormalised, and `argmax p` is
the likeliest of them. Where the data's token is not among them, `ce` and `hard` are 0 (the token
says nothing about them, and the teacher too may have wanted another one); `kl` and `tv` remain.

Teacher and students are aligned by the teacher's position u = t + k − 1, and so all heads share
one pass over the teacher's logits.

Letters: B batch, S sequence, n heads, N rows (B · S), C rows in a chunk, D model width, V
vocabulary, τ temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weighted_mtp.core.types import IGNORE_INDEX
from weighted_mtp.losses.linear_cross_entropy import add_outer_, hand_out, rows_of_chunk
from weighted_mtp.losses.mtp_loss import LossTerms, MTPLoss

OUTSIDE = -1
"""A target that is not among the tokens that are compared."""


class Distillation(NamedTuple):
    """What a head is taught: coefficients of the losses at the top of this file.

    Attributes:
        temperature: τ.
        top_n: how many of the teacher's likeliest tokens `kl` compares, renormalised; the student
            keeps its whole distribution, so that mass elsewhere costs. None for all.
    """

    ce: float = 0.0
    hard: float = 0.0
    kl: float = 0.0
    tv: float = 0.0
    temperature: float = 1.0
    top_n: int | None = None


def distillation_loss(
    hidden: Sequence[Tensor],
    unembedding: Tensor,
    terms: LossTerms,
    kind: Distillation,
    chunk_rows: int | None = None,
    vocabulary: Tensor | None = None,
) -> MTPLoss:
    """Compute Σ_k c_k · Σ_{b,t} w · loss(head k at t, head 1 at t + k − 1) / D_k over k ≥ 2.

    Args:
        hidden: n ≥ 2 tensors `[B, S, D]`, the normalised state of each head. The first is the
            teacher: no gradient reaches it.
        unembedding: `[V, D]`; its gradient is that of the students' logits.
        terms: what counts, see `LossTerms`. A target says that head k is taught at t: it must be
            −100 where t + k − 1 is no position of the same document. c of head 1 has no effect.
        chunk_rows: rows of the teacher's logits held at a time, and as many of a student's.
        vocabulary: `[M]` ascending ids of the tokens that are compared; None for all. Cross-entropy
            and hits are then among them, and 0 where the target is another token.

    Raises:
        ValueError: the unembedding would need a gradient, and only part of the vocabulary counts.

    Returns:
        The loss, differentiable (once) in the students and the unembedding; cross-entropy and hits
        on the data of all heads with a target, head 1 included; and in `taught` `[B, S, n]` each
        token's distillation loss, 0 for head 1.
    """
    students = torch.stack(list(hidden[1:]))  # [n − 1, B, S, D]
    teacher = hidden[0].detach()
    device_type = teacher.device.type
    if torch.is_autocast_enabled(device_type) and teacher.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        students, teacher = students.to(dtype), teacher.to(dtype)
    targets, graph = terms.targets, torch.is_grad_enabled()
    if vocabulary is not None:
        if graph and unembedding.requires_grad:
            raise ValueError("over part of the vocabulary, the unembedding must be frozen")
        targets, unembedding = _places(targets, vocabulary), unembedding[vocabulary]
    wide = torch.float64 if teacher.dtype == torch.float64 else torch.float32
    if chunk_rows is None:
        chunk_rows = rows_of_chunk(2 * unembedding.shape[0], teacher.element_size())  # of both
    B, S, n = targets.shape
    scale = _at_teacher(terms.scale(wide), 0.0)
    plan = _Plan(
        _at_teacher(targets, IGNORE_INDEX).view(n, -1),
        scale.view(n, -1),
        kind,
        chunk_rows,
        graph and students.requires_grad,
        graph and unembedding.requires_grad,
    )
    with torch.autocast(device_type, enabled=False):
        loss, *rows = _FusedDistillation.apply(  # type: ignore[no-untyped-call]  # torch
            students.flatten(1, 2), teacher.flatten(0, 1), unembedding, plan
        )
    ce, hit, taught = (_at_student(x.view(n, B, S)) for x in rows)
    return MTPLoss(loss, ce, hit, taught)


def mask_untaught(targets: Tensor, filled: Tensor) -> Tensor:
    """Drop the targets `[B, S, n]` of head k at t where t + k − 1 is not among the positions that
    the model runs, `filled` `[B, S]`: they become −100."""
    there = [_moved(filled, -j, False) for j in range(targets.shape[2])]
    return targets.masked_fill(~torch.stack(there, dim=2), IGNORE_INDEX)


def _places(targets: Tensor, vocabulary: Tensor) -> Tensor:
    """Where in the vocabulary each target is: `OUTSIDE` if nowhere, and −100 stays."""
    places = torch.searchsorted(vocabulary, targets).clamp(max=len(vocabulary) - 1)
    places = places.masked_fill(vocabulary[places] != targets, OUTSIDE)
    return places.masked_fill(targets == IGNORE_INDEX, IGNORE_INDEX)


def _at_teacher(x: Tensor, fill: float) -> Tensor:
    """`[B, S, n]` by the student's position → `[n, B, S]` by the teacher's: head k moves k − 1
    places to the right. What moves past the end has no teacher."""
    return torch.stack([_moved(x[..., j], j, fill) for j in range(x.shape[2])])


def _at_student(x: Tensor) -> Tensor:
    """`[n, B, S]` by the teacher's position → `[B, S, n]` by the student's; 0 where none is."""
    return torch.stack([_moved(part, -j, 0) for j, part in enumerate(x)], dim=2)


def _moved(x: Tensor, places: int, fill: float) -> Tensor:
    """`[B, S]` moved to the right (or left), with `fill` in the places that become free."""
    moved = torch.full_like(x, fill)
    if places >= 0:
        moved[:, places:] = x[:, : max(0, x.shape[1] - places)]
    else:
        moved[:, :places] = x[:, -places:]
    return moved


class _Plan(NamedTuple):
    """What is computed of which rows, all `[n, N]` by the teacher's position."""

    targets: Tensor
    scale: Tensor
    kind: Distillation
    chunk_rows: int
    student_gradient: bool
    weight_gradient: bool


class _FusedDistillation(torch.autograd.Function):
    """Loss and gradients of all rows in `forward`; `backward` only scales them."""

    @staticmethod
    def forward(
        ctx: Any, students: Tensor, teacher: Tensor, weight: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        W, wide = weight.to(teacher.dtype), plan.scale.dtype
        V, D = W.shape
        targets, scale = plan.targets, plan.scale.clone()
        scale[0] = 0.0
        # See `linear_cross_entropy`: 1/(tokens of a step) may underflow in a 16-bit number.
        largest = scale.abs().max().clamp(min=torch.finfo(wide).tiny)
        relative = scale / largest

        ce, taught = torch.zeros_like(scale), torch.zeros_like(scale)
        hit = torch.zeros_like(scale, dtype=torch.bool)
        grad_students = torch.zeros_like(students) if plan.student_gradient else None
        grad_weight = None
        if plan.weight_gradient:
            grad_weight = torch.zeros(V, D, dtype=wide, device=W.device)
        counts = (targets != IGNORE_INDEX) & (scale != 0)
        counts[0] = targets[0] != IGNORE_INDEX
        rows = counts.any(0).nonzero().squeeze(1)  # [R] positions of the teacher
        for chunk in torch.split(rows, plan.chunk_rows):
            z = torch.mm(teacher[chunk], W.t()).to(wide)  # [C, V]
            lesson = _Lesson.of(z, plan.kind)
            known = counts[0, chunk]
            u = chunk[known]
            ce[0, u], hit[0, u] = _cross_entropy(z[known], targets[0, u])
            del z  # as large as a student's
            for k in range(1, len(targets)):
                known = counts[k, chunk]
                u = chunk[known]  # [c] the teacher's positions; the student is k places behind
                h, y = students[k - 1, u - k], targets[k, u]
                logits = torch.mm(h, W.t()).to(wide)
                ce[k, u], hit[k, u] = _cross_entropy(logits, y)
                some = lesson if len(u) == len(chunk) else lesson.select(known)
                taught[k, u], residual = _teach(logits, y, some, plan.kind)
                factor, residual = relative[k, u].unsqueeze(1), residual.to(W.dtype)
                if grad_students is not None:
                    grad = torch.mm(residual, W) * factor
                    grad_students[k - 1, u - k] = grad.to(students.dtype)
                if grad_weight is not None:
                    add_outer_(grad_weight, residual, (h * factor).to(h.dtype))
                del logits, residual  # not beside those of the next head

        ctx.largest = largest
        ctx.gradients = (grad_students, students.dtype), (grad_weight, weight.dtype)
        ctx.mark_non_differentiable(ce, hit, taught)
        return (taught * scale).sum(), ce, hit, taught

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_students, grad_weight = hand_out(ctx, grad_loss * ctx.largest)
        return grad_students, None, grad_weight, None


class _Lesson(NamedTuple):
    """What the teacher says of C rows.

    Attributes:
        choice: `[C]` its likeliest token.
        p: `[C, V]` its distribution at τ; None if `tv` does not compare it.
        cut: the same, cut to the likeliest tokens, for `kl`; `p` itself if all of them count.
        entropy: `[C]` that of `cut`.
    """

    choice: Tensor
    p: Tensor | None
    cut: Tensor | None
    entropy: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, kind: Distillation) -> _Lesson:
        """Read it off logits `[C, V]`."""
        scaled, choice = _cooled(logits, kind.temperature), logits.argmax(-1)
        cuts = kind.kl > 0 and kind.top_n is not None and kind.top_n < logits.shape[1]
        p = scaled.softmax(-1) if kind.tv > 0 or (kind.kl > 0 and not cuts) else None
        if kind.kl == 0:
            return cls(choice, p, None, None)
        cut = p
        if cuts:
            top, places = scaled.topk(kind.top_n or 0, dim=-1)
            cut = torch.zeros_like(scaled).scatter_(1, places, top.softmax(-1))
        assert cut is not None
        return cls(choice, p, cut, torch.special.entr(cut).sum(-1))

    def select(self, rows: Tensor) -> _Lesson:
        """That of some rows, by a mask `[C]`."""
        p, entropy = (None if x is None else x[rows] for x in (self.p, self.entropy))
        cut = p if self.cut is self.p else None if self.cut is None else self.cut[rows]
        return _Lesson(self.choice[rows], p, cut, entropy)


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`[C]` cross-entropy, and whether no token is likelier than the target; 0 if it is outside."""
    inside = targets >= 0
    at = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    top = logits.amax(-1)
    # Measured from the largest logit, so that the logarithm's digits are those of a small number.
    ce = (logits - top.unsqueeze(1)).exp_().sum(-1).log() + (top - at)
    return ce.where(inside, 0.0), (at >= top) & inside


def _teach(
    logits: Tensor, targets: Tensor, lesson: _Lesson, kind: Distillation
) -> tuple[Tensor, Tensor]:
    """Compute the loss `[C]` of a student's logits `[C, V]`, and its gradient `[C, V]`."""
    tau, scaled = kind.temperature, _cooled(logits, kind.temperature)
    top, loss = logits.argmax(-1, keepdim=True), torch.zeros_like(logits[:, 0])
    parts: list[Tensor] = []  # of the gradient
    if kind.kl > 0 and lesson.cut is not None and lesson.entropy is not None:
        log_q, p = scaled.log_softmax(-1), lesson.cut
        apart = -lesson.entropy - (p * log_q).sum(-1)
        loss += kind.kl * tau**2 * apart.clamp(min=0.0)
        parts.append(log_q.exp_().sub_(p).mul_(kind.kl * tau))
    if kind.tv > 0 and lesson.p is not None:
        q, p = scaled.softmax(-1), lesson.p
        below = (q < p).to(q.dtype)
        loss += kind.tv * (p - q).clamp_(min=0.0).sum(-1)
        mean = (below * q).sum(-1, keepdim=True)
        parts.append(below.neg_().add_(mean).mul_(q).mul_(kind.tv / tau))
        del q
    if kind.ce > 0 or kind.hard > 0:
        log_q = logits.log_softmax(-1)
        inside = (targets >= 0).to(log_q.dtype).unsqueeze(1)  # [C, 1]
        y, choice = targets.clamp(min=0).unsqueeze(1), lesson.choice.unsqueeze(1)
        ce, hard = kind.ce * inside, kind.hard * inside
        loss -= (ce * log_q.gather(1, y) + hard * log_q.gather(1, choice)).squeeze(1)
        part = log_q.exp_().mul_(ce + hard)
        part.scatter_add_(1, y, -ce)
        part.scatter_add_(1, choice, -hard)
        parts.append(part)
    residual = parts[0]
    for part in parts[1:]:
        residual += part
    residual.scatter_(1, top, 0.0)
    residual.scatter_(1, top, -residual.sum(-1, keepdim=True))
    return loss, residual
