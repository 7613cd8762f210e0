"""Checks that a run learns from what it thinks it learns from. Each stops a run with a sentence."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.core.batch import TokenAnswer, Tree, pack
from rlhflab.core.returns import kl_k3
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel

START_KL = 1e-4
"""Largest KL(policy, reference) of a fresh run, nats a token."""


def refuse_wrong_reference(policy: Float[Tensor, " s"], reference: Float[Tensor, " s"], *, role: str,
                           name: str | None) -> dict[str, Tensor]:
    """A policy that starts elsewhere than its reference is punished for the start, not for what it learns.

    Both are read in the same batches: in bf16 another batch moves log-probs by rounding alone, by more than the limit
    on KL allows; in the same batch a true reference gives the same bits. Returns the KL of each token, to be noted with
    the first step.
    """
    each = kl_k3(policy, reference)
    kl = float(each.mean())
    if not kl <= START_KL:
        raise RunError(f"KL({role}, {name or 'base'}) is {kl:.2g} nats a token before the first step, where it must be "
                       f"below {START_KL:g}: the reference is not what the policy started from")
    return {"start_kl": each}


def engine_gap(engine: Float[Tensor, " s"], trainer: Float[Tensor, " s"]) -> dict[str, float]:
    """How far the log-probs of the sampler and of the training forward lie apart, nats a token."""
    return _gap("engine_gap", engine - trainer)


def _gap(name: str, difference: Tensor) -> dict[str, float]:
    size = difference.abs()
    return {f"{name}_max": float(size.max()), f"{name}_mean": float(size.mean())}


def _engine_limit(dtype: torch.dtype) -> tuple[str, float]:
    """fp32: at most 1e-3 at any token; bf16: at most .05 in the mean."""
    return ("engine_gap_max", 1e-3) if dtype == torch.float32 else ("engine_gap_mean", 0.05)


def engine_agrees(gap: Mapping[str, float], *, dtype: torch.dtype) -> bool:
    """Whether sampler and trainer are as close as two kernels on the same weights."""
    name, limit = _engine_limit(dtype)
    return gap[name] <= limit


def refuse_engine_gap(gap: Mapping[str, float], *, dtype: torch.dtype) -> None:
    """RunError where `engine_agrees` says no."""
    if not engine_agrees(gap, dtype=dtype):
        name, limit = _engine_limit(dtype)
        raise RunError(f"sampler and trainer disagree about the log-probs of the same tokens ({name} {gap[name]:.3g} "
                       f"nats, limit {limit:g}): they do not run the same weights")


def end_token_share(trees: Iterable[Tree], end_id: int) -> float:
    """Share of the targets whose end-of-turn token is trained. A target is a run of scored tokens: one turn."""
    ends = [answer.ids[last] == end_id for tree in trees for answer in tree.answers for last in _turn_ends(answer)]
    return sum(ends) / len(ends) if ends else 0.0


def _turn_ends(answer: TokenAnswer) -> list[int]:
    scored = answer.scored or (True,) * len(answer.ids)
    return [i for i, counts in enumerate(scored) if counts and not (i + 1 < len(scored) and scored[i + 1])]


@torch.no_grad()
def batch_gap(model: SharedModel, trees: Sequence[Tree], *, role: str) -> dict[str, float]:
    """How far the raw scores of answers lie apart that are read alone, all in one batch, and in reversed order.

    Of an ensemble those of each member, since one of them may be all that counts.
    """
    alone = [Tree(prompt=tree.prompt, answers=(answer,)) for tree in trees for answer in tree.answers]
    backwards = [Tree(prompt=tree.prompt, answers=tree.answers[::-1]) for tree in trees[::-1]]

    def scores(batch: Sequence[Tree]) -> Tensor:
        return model.outputs(pack(batch).to(model.device), role)

    each = torch.cat([scores([tree]) for tree in alone])
    return _gap("batch_gap", torch.stack([scores(trees), scores(backwards).flip(0)]) - each)


def refuse_batch_gap(gap: dict[str, float], *, sigma: float, dtype: torch.dtype) -> None:
    """A score is a property of the answer. fp32: at most 1e-4 for any; bf16: at most .1 `sigma` in the mean, or .02.

    In bf16 a sum in another order moves the scores of a 30-layer model, in the mean, by .009 of their deviation `sigma`
    after a whole run and by .03 to .04 while the head has hardly learnt; reading another token moves them by about 1.
    A role that has learnt nothing, from labels at random say, has hardly any deviation; .02 of a logit moves no
    preference by more than half a per cent.
    """
    name, limit = ("batch_gap_max", 1e-4) if dtype == torch.float32 else ("batch_gap_mean", max(0.1 * sigma, 0.02))
    if not gap[name] <= limit:
        raise RunError(f"the score of an answer depends on what it is batched with: alone, in one batch and in "
                       f"reversed order it differs ({name} {gap[name]:.3g}, limit {limit:.3g})")


@torch.no_grad()
def reading_gap(model: SharedModel, trees: Sequence[Tree], role: str, other: str) -> dict[str, float]:
    """How far apart two roles read the same answers: raw scores where they have a head, else nats a token."""
    batch = pack(trees).to(model.device)

    def read(name: str) -> Tensor:
        return model.score(batch, name) if model.head_parameters(role) else model.logprobs(batch, name).logprob

    return _gap("reading_gap", read(role) - read(other))


def refuse_reading_gap(gap: dict[str, float], *, where: str, limit: float = 0.0) -> None:
    """Weights that were written and read are the same, so they read the same. `limit` is for sums in another order."""
    if not gap["reading_gap_max"] <= limit:
        raise RunError(f"{where}: loaded again, this role reads the same answers otherwise than the one that was "
                       f"trained (reading_gap_max {gap['reading_gap_max']:.3g}, limit {limit:g}): it was not saved as "
                       "it is")
