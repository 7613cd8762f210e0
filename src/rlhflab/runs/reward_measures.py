"""What a trained reward role is told about its own scores, and what is said of them in the summary."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from rlhflab.config import RewardRun
from rlhflab.core.batch import PreferenceTree, pair_index
from rlhflab.core.calibration import Array, Calibration, calibrate
from rlhflab.core.losses import correlation
from rlhflab.core.stats import mean_interval
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.reward_role import combined, scaled, token_counts
from rlhflab.rollout.scoring import score_members


class Measured(NamedTuple):
    """A reward role on held-out pairs."""

    scores: Array
    """Standardised, members averaged, not corrected for length: (pairs, 2), chosen first."""
    calibration: Calibration
    length: dict[str, Any]
    """Correlation of score and tokens over all answers read, as it is and corrected; the corrected accuracy."""


def measure_role(run: RewardRun, model: SharedModel, *, seen: Sequence[PreferenceTree],
                 unseen: Sequence[PreferenceTree], prompts: Sequence[Hashable], role: str = "reward") -> Measured:
    """Fit scale, length curve and temperature, and write them into the role's record.

    Scale and curve are fitted on all answers of `seen` and `unseen`, the temperature on the pairs of `unseen`, whose
    `prompts` are given one a pair. Answers to a few prompts are enough for a scale; those held out are read
    in any case.
    """
    trees = [each.tree for each in (*seen, *unseen)]
    outputs = torch.cat(score_members(model, trees, role=role, micro_tokens=run.micro_tokens))
    tokens = token_counts(trees)
    record = scaled(model.records[role], outputs, tokens)
    plain, corrected = (combined(record, outputs, tokens, length_correction=on) for on in (False, True))
    first = sum(len(each.tree.answers) for each in seen)
    of_pairs, of_pairs_corrected = (
        torch.stack([scores[first:][side] for side in pair_index(unseen)], dim=1).double().numpy()
        for scores in (plain, corrected))
    calibration = calibrate(of_pairs[:, 0] - of_pairs[:, 1], prompts)
    model.records[role] = replace(record, temperature=calibration.temperature)
    right = (of_pairs_corrected[:, 0] > of_pairs_corrected[:, 1]).astype(float).tolist()
    return Measured(of_pairs, calibration, {
        "correlation": float(correlation(plain, tokens)),
        "correlation_corrected": float(correlation(corrected, tokens)),
        "accuracy_corrected": mean_interval(right, prompts)._asdict()})
