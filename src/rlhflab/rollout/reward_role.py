"""How the outputs of a reward role become scores: standardised, corrected for length, combined.

No loss here; what the numbers of a record are fitted on is up to the stage. Axes: n answers, k heads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.core.calibration import LengthCurve, fit_length_curve
from rlhflab.core.outliers import Cloud, fit_cloud
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Rollout, Score
from rlhflab.errors import RunError
from rlhflab.model.shared import RoleRecord, SharedModel
from rlhflab.rollout.sampling import rollout_trees
from rlhflab.rollout.scoring import read_trees, score_members

Combine = Literal["mean", "wco", "uwo"]
MOST_HALF = torch.finfo(torch.float16).max
COMBINE: Mapping[Combine, Callable[[Tensor, float], Tensor]] = {
    "mean": lambda members, weight: members.mean(-1),
    "wco": lambda members, weight: members.amin(-1),
    "uwo": lambda members, weight: members.mean(-1) - weight * members.var(-1, unbiased=False),
}
"""Worst-case and uncertainty-weighted optimisation of Coste et al. 2023 (arXiv:2310.02743)."""


def role_scores(model: SharedModel, trees: Sequence[Tree], *, role: str, micro_tokens: int, combine: Combine = "mean",
                uwo_lambda: float = 0.1, length_correction: bool = False) -> list[Float[Tensor, " n"]]:
    """Scores of the answers of each tree in deviations of the role's scores on SFT samples."""
    read = score_members(model, trees, role=role, micro_tokens=micro_tokens)
    scores = combined(model.records[role], torch.cat(read), token_counts(trees), combine=combine,
                      uwo_lambda=uwo_lambda, length_correction=length_correction)
    return list(scores.split([len(each) for each in read]))


def combined(record: RoleRecord, outputs: Float[Tensor, "n k"], tokens: Float[Tensor, " n"], *,
             combine: Combine = "mean", uwo_lambda: float = 0.1,
             length_correction: bool = False) -> Float[Tensor, " n"]:
    """One score of each answer from its raw outputs: every head is standardised, then corrected, then combined.

    A single head has no spread, so the three ways to combine agree on it.
    """
    return COMBINE[combine](member_scores(record, outputs, tokens, length_correction=length_correction), uwo_lambda)


def member_scores(record: RoleRecord, outputs: Float[Tensor, "n k"], tokens: Float[Tensor, " n"], *,
                  length_correction: bool = False) -> Float[Tensor, "n k"]:
    """What each head says, standardised and, if asked, corrected for length."""
    members = standardised(record, outputs)
    return members - usual_for_length(record, tokens) if length_correction else members


def standardised(record: RoleRecord, outputs: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Outputs in deviations of each head's own outputs on SFT samples."""
    mean = torch.tensor(record.member_means or (record.score_mean,))
    return (outputs - mean) / torch.tensor(record.member_stds or (record.score_std,))


def usual_for_length(record: RoleRecord, tokens: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """What each head usually says, standardised, of answers of so many tokens."""
    lengths, *curves = (torch.tensor(each, dtype=torch.float64).numpy() for each in record.length_curve)
    read = [LengthCurve(lengths, curve).at(tokens.double().numpy()) for curve in curves]
    return torch.stack([torch.from_numpy(each) for each in read], dim=-1).float()


def scaled(record: RoleRecord, outputs: Float[Tensor, "n k"], tokens: Float[Tensor, " n"]) -> RoleRecord:
    """The record with mean, deviation and length curve of each head, fitted on these outputs for SFT samples."""
    means, stds = outputs.mean(0).tolist(), outputs.std(0, unbiased=False).clamp(min=1e-6).tolist()
    record = replace(record, score_mean=means[0], score_std=stds[0]) if len(means) == 1 else \
        replace(record, member_means=tuple(means), member_stds=tuple(stds))
    curves = [fit_length_curve(tokens.double().numpy(), column.double().numpy())
              for column in standardised(record, outputs).T]
    return replace(record, length_curve=(tuple(curves[0].lengths.tolist()),
                                         *(tuple(curve.scores.tolist()) for curve in curves)))


def token_counts(trees: Sequence[Tree]) -> Float[Tensor, " n"]:
    """Tokens of each answer, with the one that ends it."""
    return torch.tensor([float(len(answer.ids)) for tree in trees for answer in tree.answers])


@dataclass(slots=True, kw_only=True)
class RoleReward:
    """A reward role as a source of rewards."""

    model: SharedModel
    role: str
    micro_tokens: int
    combine: Combine = "mean"
    uwo_lambda: float = 0.1
    length_correction: bool = False
    outlier_weight: float = 0.0
    """Price of lying one limit beyond the limit of the start's answers."""
    retold: ChatFormat | None = None
    """That of the model, where the answers are in the tokens of another one."""
    cloud: Cloud | None = field(default=None, init=False)

    @property
    def by(self) -> str:
        """Who scores."""
        return f"role:{self.role}"

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout, in deviations of the role's scores on SFT samples, less the price of an outlier."""
        if self.retold is None:
            return self._scores(rollout_trees(rollouts))
        return scores_within(self.model.context, retold_trees(self.retold, rollouts), self._scores, by=self.by)

    def meet(self, answers: Sequence[Rollout]) -> None:
        """Learn where the states of the start's answers lie, before any is scored. Needs at least 4."""
        trees = rollout_trees(answers) if self.retold is None else [
            tree for tree in retold_trees(self.retold, answers) if len(tree) <= self.model.context]
        self.cloud = fit_cloud(self._outputs_and_states(trees)[1].numpy())

    def _scores(self, trees: Sequence[Tree]) -> list[Score]:
        if self.outlier_weight and self.cloud is None:
            raise RunError(f"{self.by}: outlier_weight needs the answers of the start, and has not met them")
        outputs, states = self._outputs_and_states(trees)
        members = member_scores(self.model.records[self.role], outputs, token_counts(trees),
                                length_correction=self.length_correction)
        scores = COMBINE[self.combine](members, self.uwo_lambda)
        if self.cloud is not None:
            scores = scores - self.outlier_weight * torch.from_numpy(self.cloud.excess(states.numpy())).float()
        kept = states.clamp(-MOST_HALF, MOST_HALF).half().numpy()
        return [Score(value=value, by=self.by, members=tuple(each) if len(each) > 1 else (), state=state)
                for value, each, state in zip(scores.tolist(), members.tolist(), kept, strict=True)]

    def _outputs_and_states(self, trees: Sequence[Tree]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n d"]]:
        """By one forward pass, on the CPU."""
        read = torch.cat(read_trees(
            self.model, trees, lambda batch: torch.cat(self.model.outputs_and_states(batch, self.role), dim=-1),
            per="answer", micro_tokens=self.micro_tokens))
        return read[:, :-self.model.width], read[:, -self.model.width:]


def other_base(name: str, like: SharedModel) -> SharedModel:
    """Another base model, in the dtype and on the device of `like`."""
    return SharedModel.load(name, dtype=str(like.unembedding.dtype).removeprefix("torch."), device=str(like.device))


def retold_trees(chat: ChatFormat, rollouts: Sequence[Rollout]) -> list[Tree]:
    """Rollouts in the tokens of another model, each prompt and answer told again as text: one tree a rollout."""
    def ids(rollout: Rollout) -> tuple[int, ...]:
        whole = chat.answer(rollout.text)
        return whole if rollout.stopped else whole[:-1] or whole

    return [Tree(prompt=chat.prompt(rollout.prompt), answers=(TokenAnswer(ids=ids(rollout)),)) for rollout in rollouts]


def scores_within(context: int, trees: Sequence[Tree], read: Callable[[Sequence[Tree]], list[Score]], *,
                  by: str) -> list[Score]:
    """The score of each tree's one answer; none where prompt and answer are longer than `context`, in tokens.

    The policy's own base has room for whatever it sampled, another model may count more tokens or have less room.
    """
    fitting = [tree for tree in trees if len(tree) <= context]
    scores = iter(read(fitting) if fitting else [])
    return [next(scores) if len(tree) <= context else
            Score(value=None, by=by, reason=f"prompt and answer have {len(tree)} tokens, and the reward model reads "
                  f"{context} at most") for tree in trees]
