"""What judged comparisons say of the people who judged them: agreement, reliability, habits, and how noisy labels are.

Reads records and gives JSON values; no files and no page. A verdict that says nothing (`skip`) is left out.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhflab.analysis.reward_report import plain_json
from rlhflab.core.agreement import (
    Array,
    Skill,
    Votes,
    cohen_kappa,
    dawid_skene,
    fleiss_kappa,
    interval_alpha,
    krippendorff_alpha,
    pairwise_kappa,
    raw_agreement,
    repeated,
)
from rlhflab.core.calibration import flip_rate, noise_ceiling
from rlhflab.core.stats import Estimate, jackknife, mean_interval
from rlhflab.data.forms import winner
from rlhflab.data.types import Judged, Judgment

Record = dict[str, Any]
ORDER = ("a", "tie", "both_bad", "b")
"""Verdicts in the order of the ordinal alpha, which puts both that prefer no side into the middle."""
DECIDED = ("a", "b")
SWAP: Mapping[str, Literal["a", "b"]] = {"a": "b", "b": "a"}
MOST_NOISE = 0.45
"""Above this share of flipped labels no loss is named: it would divide by next to nothing."""
NOBODY = "(no name)"


class Opinion(NamedTuple):
    """One judgment and the number of the comparison it is of."""

    item: int
    judged: Judged
    judgment: Judgment

    @property
    def side(self) -> float:
        """Preference for b with its strength, from -1 (a) to 1."""
        return {"a": -1.0, "b": 1.0}.get(self.judgment.verdict, 0.0) * self.judgment.strength

    @property
    def first(self) -> float | None:
        """1 where the answer shown first was preferred, 0 where the other; None without a side or a known order."""
        decided = self.judgment.verdict in DECIDED and self.judgment.shown_first is not None
        return float(self.judgment.verdict == self.judgment.shown_first) if decided else None

    @property
    def longer(self) -> float | None:
        """1 where the answer of more characters was preferred, 0 where the other; None without a side, or as long."""
        a, b = len(self.judged.comparison.a), len(self.judged.comparison.b)
        if self.judgment.verdict not in DECIDED or a == b:
            return None
        return float((self.judgment.verdict == "a") == (a > b))


def opinions_of(judged: Sequence[Judged], *, without: Iterable[str] = ()) -> list[Opinion]:
    """What counts of all judgments: of one annotator on one comparison the last, and nothing skipped.

    Judgments without a name may be of different people, so all of them count. `without`: annotators left out.
    """
    left_out, found = set(without), []
    for item, each in enumerate(judged):
        last = {judgment.annotator or i: judgment for i, judgment in enumerate(each.judgments)}
        found += [Opinion(item, each, judgment) for judgment in last.values()
                  if judgment.verdict != "skip" and judgment.annotator not in left_out]
    return found


def gathered(judged: Iterable[Judged]) -> list[Judged]:
    """Rows of one judgment each on the same two answers to one prompt as one comparison, whichever came first.

    So files of pairs say who else was asked. A row with several judgments is whole by itself.
    """
    whole: list[Judged] = []
    places: dict[Hashable, int] = {}
    for each in judged:
        one = each.comparison
        key = (one.prompt.messages, *sorted((one.a, one.b)))
        if len(each.judgments) != 1 or key not in places:
            if len(each.judgments) == 1:
                places[key] = len(whole)
            whole.append(each)
            continue
        first = whole[places[key]]
        said = each.judgments if first.comparison.a == one.a else tuple(map(swapped, each.judgments))
        whole[places[key]] = replace(first, judgments=(*first.judgments, *said))
    return whole


def swapped(judgment: Judgment) -> Judgment:
    """The same word on the comparison with its answers the other way round."""
    verdict, first = SWAP.get(judgment.verdict, judgment.verdict), judgment.shown_first
    return replace(judgment, verdict=verdict, shown_first=first and SWAP[first])


class Ballot(NamedTuple):
    """Opinions as numbers, with the names behind the numbers."""

    votes: Votes
    annotators: tuple[str, ...]
    verdicts: tuple[str, ...]


def ballot_of(opinions: Sequence[Opinion], items: int) -> Ballot:
    """The verdicts that occur, and a and b in any case, in the order of `ORDER`."""
    said = {opinion.judgment.verdict for opinion in opinions} | set(DECIDED)
    verdicts = tuple(verdict for verdict in ORDER if verdict in said)
    names = tuple(dict.fromkeys(opinion.judgment.annotator for opinion in opinions))
    number = {name: i for i, name in enumerate(names)}
    columns = [[opinion.item for opinion in opinions], [number[opinion.judgment.annotator] for opinion in opinions],
               [verdicts.index(opinion.judgment.verdict) for opinion in opinions]]
    item, annotator, value = (np.array(column, dtype=np.int64) for column in columns)
    return Ballot(Votes(item=item, annotator=annotator, value=value, items=items, annotators=len(names),
                        categories=len(verdicts)), names, verdicts)


def agreement_record(judged: Sequence[Judged], *, judges: Sequence[str] = ()) -> Record:
    """Everything that `rlhflab data agreement` says. `judges`: annotators who are measured against the others."""
    opinions = opinions_of(judged, without=judges)
    ballot = ballot_of(opinions, len(judged))
    votes, skill = ballot.votes, dawid_skene(ballot.votes)
    strengths = {opinion.judgment.strength for opinion in opinions}
    sides = np.array([opinion.side for opinion in opinions])
    kinds = {verdict: sum(opinion.judgment.verdict == verdict for opinion in opinions) for verdict in ballot.verdicts}
    record: Record = {
        "comparisons": len(judged), "judged": len({opinion.item for opinion in opinions}),
        "judged_twice": repeated(votes), "opinions": len(opinions), "verdicts": kinds,
        "skipped": sum(judgment.verdict == "skip" for each in judged for judgment in each.judgments),
        "agreement": {
            "raw": raw_agreement(votes), "cohen_kappa": pairwise_kappa(votes), "fleiss_kappa": fleiss_kappa(votes),
            "alpha_nominal": krippendorff_alpha(votes),
            "alpha_ordinal": krippendorff_alpha(votes, ordinal=True) if len(ballot.verdicts) > 2 else None,
            "alpha_interval": interval_alpha(votes.item, sides) if len(strengths) > 1 else None},
        "noise": noise(ballot, skill), "habits": habits(opinions),
        "annotators": annotators(opinions, ballot, skill),
        "confusion": {"verdicts": ballot.verdicts, "all": pooled(ballot, skill)},
        "judges": {name: against_majority(judge_labels(judged, name, judges=judges)) for name in judges}}
    return dict(plain_json(record | {"advice": advice(record)}))


# -- how noisy the labels are ----------------------------------------------------------------------------------------


def noise(ballot: Ballot, skill: Skill) -> Record:
    """Flipped labels, from how often two opinions that take a side agree, and by Dawid and Skene; the ceiling.

    `majority_flipped`: of labels that are the majority of a comparison's opinions, by the same model.
    """
    votes = ballot.votes
    sides = [ballot.verdicts.index(side) for side in DECIDED]
    decided = votes.of(np.isin(votes.value, sides))
    agreed = raw_agreement(decided)
    if agreed is None:
        return dict.fromkeys(("agreement_on_sides", "flipped", "flipped_dawid_skene", "majority_flipped",
                              "noise_ceiling"))
    agreed = within_one(agreed)
    return {"agreement_on_sides": agreed,
            # A higher agreement is a lower rate, so the bounds change places.
            "flipped": Estimate(flip_rate(agreed.mean), flip_rate(agreed.high), flip_rate(agreed.low), agreed.n),
            "flipped_dawid_skene": flipped_by_model(ballot, skill),
            "majority_flipped": majority_flipped(decided, skill, sides),
            "noise_ceiling": noise_ceiling(zip(decided.item.tolist(), (decided.value == sides[0]).tolist(),
                                               strict=True))}


def flipped_by_model(ballot: Ballot, skill: Skill) -> Estimate:
    """Share of opinions with a side, on comparisons whose truth has one, that took the other, by Dawid and Skene.

    The interval leaves out groups of items and fits the model again.
    """
    votes = ballot.votes
    often = np.bincount(votes.item, minlength=votes.items)[votes.item] > 1
    rows = list(zip(votes.item[often].tolist(), votes.annotator[often].tolist(), votes.value[often].tolist(),
                    strict=True))
    a, b = (ballot.verdicts.index(side) for side in DECIDED)

    def flipped(rows: Sequence[tuple[int, int, int]]) -> float:
        item, annotator, value = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
        some = Votes(item=item, annotator=annotator, value=value, items=votes.items, annotators=votes.annotators,
                     categories=votes.categories)
        truth = dawid_skene(some, start=skill.truth).truth[item]
        takes = np.isin(value, (a, b))
        other = np.where(value == a, b, a)
        wrong = truth[np.arange(len(item)), other][takes].sum()
        return float(wrong / truth[takes][:, [a, b]].sum())

    of_item: dict[int, list[tuple[int, int, int]]] = {}
    for row in rows:
        of_item.setdefault(row[0], []).append(row)
    return within_one(jackknife(flipped, of_item)._replace(n=len(of_item)))  # type: ignore[arg-type]


def majority_flipped(decided: Votes, skill: Skill, sides: Sequence[int]) -> Estimate | None:
    """Expected share of wrong sides among majority labels, on comparisons with two opinions of a side or more."""
    counts = decided.counts[:, sides]
    clear = (counts.sum(1) > 1) & (counts[:, 0] != counts[:, 1])
    if not clear.any():
        return None
    truth = skill.truth[clear][:, sides]
    wrong = np.where(counts[clear, 0] > counts[clear, 1], truth[:, 1], truth[:, 0]) / truth.sum(1)
    return within_one(mean_interval(wrong.tolist()))


# -- annotators ------------------------------------------------------------------------------------------------------


def annotators(opinions: Sequence[Opinion], ballot: Ballot, skill: Skill) -> list[Record]:
    """One row an annotator, the busiest first."""
    votes = ballot.votes
    counts = votes.counts
    total = counts.sum(1)[votes.item]
    equal = counts[votes.item, votes.value] - 1
    right = skill.truth[votes.item, votes.value]
    rows = []
    for number, name in enumerate(ballot.annotators):
        own = np.flatnonzero(votes.annotator == number)
        shared = own[total[own] > 1]
        rows.append({
            "name": name or NOBODY, "opinions": len(own),
            "reliability": rate(right[shared].tolist(), votes.item[shared].tolist()),
            "agrees_with_others": rate((equal[shared] / (total[shared] - 1)).tolist(), votes.item[shared].tolist()),
            **habits([opinions[i] for i in own.tolist()]), "confusion": skill.confusion[number].round(4).tolist()})
    return sorted(rows, key=lambda row: -row["opinions"])


def habits(opinions: Sequence[Opinion]) -> Record:
    """How often the answer shown first and the longer one are preferred, and the time an opinion takes."""
    found: Record = {}
    for name in ("first", "longer"):
        known = [(opinion.item, value) for opinion in opinions if (value := getattr(opinion, name)) is not None]
        found[f"{name}_preferred"] = rate([value for _, value in known], [item for item, _ in known])
    seconds = [opinion.judgment.seconds for opinion in opinions if opinion.judgment.seconds is not None]
    low, middle, high = np.quantile(seconds or [0.0], [0.25, 0.5, 0.75]).tolist()
    return found | {"seconds": {"median": middle, "quarter": low, "three_quarters": high, "n": len(seconds)}
                    if seconds else None}


def pooled(ballot: Ballot, skill: Skill) -> list[list[float]]:
    """(truth, said): the confusion of all annotators together, each weighted by its votes."""
    often = np.bincount(ballot.votes.annotator, minlength=ballot.votes.annotators)
    weighted: Array = (skill.confusion * often[:, None, None]).sum(0) / max(often.sum(), 1)
    return [[float(share) for share in row] for row in weighted.round(4)]


def rate(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate | None:
    """A share with its interval; None of nothing."""
    return within_one(mean_interval(values, clusters)) if values else None


def within_one(found: Estimate) -> Estimate:
    """A share's t-interval may leave [0, 1]; the share itself cannot."""
    return Estimate(found.mean, max(0.0, found.low), min(1.0, found.high), found.n)


# -- a judge beside people -------------------------------------------------------------------------------------------


def judge_labels(judged: Sequence[Judged], judge: str, *,
                 judges: Sequence[str] = ()) -> list[tuple[Hashable, str, str]]:
    """(prompt, side that won among people, the judge's verdict) where both take a side.

    The judge is an annotator, or a key of `meta` that holds its verdict. Neither it nor the other `judges` are people.
    """
    found: list[tuple[Hashable, str, str]] = []
    machines = {judge, *judges}
    for each in judged:
        own = [judgment.verdict for judgment in each.judgments if judgment.annotator == judge]
        said = own[-1] if own else each.meta.get(judge)
        people = winner(replace(each, judgments=tuple(j for j in each.judgments if j.annotator not in machines)))
        if people is not None and said in DECIDED:
            found.append((each.comparison.prompt.messages, people, str(said)))
    return found


def against_majority(labels: Sequence[tuple[Hashable, str, str]]) -> Record | None:
    """How often a judge is with the people's majority, and Cohen's kappa of the two, clustered by prompt.

    From (prompt, majority, verdict); None of nothing.
    """
    if not labels:
        return None
    by_prompt: dict[Hashable, list[tuple[str, str, str]]] = {}
    for prompt, people, judge in labels:
        by_prompt.setdefault(prompt, []).append(("", people, judge))
    kappa = jackknife(cohen_kappa, by_prompt)
    return {"agreement": rate([float(people == judge) for _, people, judge in labels], [p for p, _, _ in labels]),
            "kappa": kappa if np.isfinite(kappa.mean) else None, "prompts": len(by_prompt)}


# -- what to do next -------------------------------------------------------------------------------------------------


def advice(record: Mapping[str, Any]) -> list[str]:
    """What the noise means for a reward model and for DPO, in one or two sentences."""
    flipped, by_model = record["noise"]["flipped"], record["noise"]["flipped_dawid_skene"]
    if flipped is None:
        return ["No comparison has two opinions that take a side, so nothing says how noisy the labels are. "
                "Next: have some comparisons judged by two people."]
    share = round(flipped.mean, 2)
    model = f", {by_model.mean:.2f} by Dawid and Skene" if by_model else ""
    said = (f"About {share:.2f} of single labels are flipped (by agreement{model}), so a perfect reward model would "
            f"reach {1 - flipped.mean:.2f} on them.")
    if share > MOST_NOISE:
        return [said, "Next: write clearer instructions or ask other people; from labels this noisy no loss learns."]
    if share == 0:
        return [said, "Next: rlhflab train dpo; there is no noise to correct for."]
    return [said, f"Next: --loss.name robust --loss.label_noise {share:.2f} (or cdpo) for DPO, --label_smoothing "
                  f"{share:.2f} for a reward model, where each label is one opinion."]
