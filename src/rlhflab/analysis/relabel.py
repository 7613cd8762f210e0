"""Targeted relabelling: which answers of a run failed, how they cluster, and which comparisons to ask people about.

Pure functions on samples; no model, no files. Failures are grouped by what is wrong with them, then by their words, and
each group gives as many comparisons as the others: a failure that is rare among the answers is not rare in the batch.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from rlhflab.analysis.evidence import Sample
from rlhflab.analysis.figures import short
from rlhflab.analysis.texts import ngrams, words
from rlhflab.catalog import Catalog
from rlhflab.core.signals import log_odds
from rlhflab.errors import DataError

Flags = NDArray[np.bool_]
Sign = Callable[[Sequence[Sample], Sequence[Sample]], Flags]

failure_sign: Catalog[Sign] = Catalog("failure sign")
"""Signs of failure that need no right answer: `(samples, those of the start)` to one flag a sample. `needs` are the
fields of a sample without which a sign is left out."""

LEAST_START = 16
"""Answers of the start that a sign compares with; fewer know no quantile."""
LEAST_CLUSTERED = 16
"""Failures of one kind below which they stay one cluster."""
MOST_CLUSTERS = 4
"""Clusters of one kind."""
MOST_CLUSTERED = 1500
"""Failures of one kind that are clustered, the most rewarded first: their distances are all held at once."""
TERMS = 400
"""Words and neighbouring words that describe an answer, the most frequent."""
PRIOR = 0.1
"""Weight of the prior of phrase counts, in all counts."""


class Failure(NamedTuple):
    """A failed answer, what is wrong with it, and a plausible better answer to the same prompt."""

    sample: Sample
    kinds: tuple[str, ...]
    better: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One comparison to ask about: an answer that failed beside a plausible better one."""

    suspect: Sample
    better: Sample
    kinds: tuple[str, ...]
    cluster: str

    @property
    def why(self) -> str:
        """One line for the record. Whoever judges the comparison should not see it."""
        reward = "" if self.suspect.reward is None else f", reward {short(self.suspect.reward)}"
        wrong = ", ".join(self.kinds) or "drawn at random"
        return f"step {self.suspect.step}{reward}: {wrong}; beside an answer of step {self.better.step}"


# -- signs without a right answer ----------------------------------------------------------------------------------


@failure_sign("cut off", needs=("stopped",))
def cut_off(samples: Sequence[Sample], start: Sequence[Sample]) -> Flags:
    """It did not end by itself."""
    return np.array([sample.stopped is False for sample in samples])


@failure_sign("over-long")
def over_long(samples: Sequence[Sample], start: Sequence[Sample]) -> Flags:
    """More words than 97.5 % of the start's answers."""
    return _beyond([float(len(words(s.answer))) for s in samples], [float(len(words(s.answer))) for s in start])


@failure_sign("over-used phrase", source="Monroe, Colaresi & Quinn 2008, eq. 22")
def over_used_phrase(samples: Sequence[Sample], start: Sequence[Sample]) -> Flags:
    """Holds three words in a row that all answers use far more often than the start's: log-odds z above 4."""
    phrases = over_used(samples, start)
    return np.array([not phrases.isdisjoint(ngrams(sample.answer, 3)) for sample in samples])


@failure_sign("rewarded and unlikely", needs=("reward", "reference_logprob", "tokens"))
def rewarded_and_unlikely(samples: Sequence[Sample], start: Sequence[Sample]) -> Flags:
    """Reward above the start's median, while its tokens are less likely to the reference than 97.5 % of the start's."""
    unlikely = _beyond([-_per_token(s) for s in samples], [-_per_token(s) for s in start])
    return unlikely & (_field(samples, "reward") > float(np.median(_field(start, "reward"))))


@failure_sign("twin disagrees", needs=("reward", "twin"))
def twin_disagrees(samples: Sequence[Sample], start: Sequence[Sample]) -> Flags:
    """The reward is further above the twin's, each standardised on the start, than for 97.5 % of the start's."""
    gaps = []
    for each in (samples, start):
        reward, twin = ((_field(each, name) - _field(start, name).mean()) / max(float(_field(start, name).std()), 1e-9)
                        for name in ("reward", "twin"))
        gaps.append((reward - twin).tolist())
    return _beyond(*gaps)


def over_used(samples: Sequence[Sample], start: Sequence[Sample]) -> set[tuple[str, ...]]:
    """Trigrams with a log-odds z above 4 of being in an answer of `samples` against one of `start`.

    A trigram counts once an answer.
    """
    now, before = (Counter(gram for sample in each for gram in set(ngrams(sample.answer, 3)))
                   for each in (samples, start))
    return {gram for gram, z in log_odds(
        now, before, prior=PRIOR, of=(len(samples), len(start))).items() if z > 4}


def _beyond(values: Sequence[float], usual: Sequence[float]) -> Flags:
    return np.asarray(values) > float(np.quantile(usual, 0.975))


def _field(samples: Sequence[Sample], name: str) -> NDArray[np.float64]:
    return np.array([getattr(sample, name) for sample in samples], dtype=float)


def _per_token(sample: Sample) -> float:
    assert sample.reference_logprob is not None and sample.tokens is not None
    return sample.reference_logprob / max(1, sample.tokens)


# -- failures ------------------------------------------------------------------------------------------------------


def failures_of(samples: Sequence[Sample], start: Sequence[Sample], better: Mapping[str, str]) -> list[list[str]]:
    """What is wrong with each sample.

    Where a sample has `measures` by a check that knows the right answer: those that are only ever 0 or 1, and here are
    0 and should be high, or 1 and should be low; `better` says which, `higher` or `lower`. Elsewhere the signs for
    which both `samples` and `start` hold what they need.
    """
    found: list[list[str]] = [[] for _ in samples]
    checked = [bool(sample.measures) for sample in samples]
    rates = {name for name in better if {sample.measures.get(name) for sample in samples} <= {None, 0.0, 1.0}}
    for kinds, sample in zip(found, samples, strict=True):
        kinds += [name for name, value in sample.measures.items()
                  if name in rates and value == (0.0 if better[name] == "higher" else 1.0)]
    if all(checked) or len(start) < LEAST_START:
        return found
    for entry in failure_sign.entries():
        known = [i for i, sample in enumerate(samples) if not checked[i] and _has(sample, entry.needs)]
        usual = [sample for sample in start if _has(sample, entry.needs)]
        if known and len(usual) >= LEAST_START:
            for i, flag in zip(known, entry.function([samples[i] for i in known], usual), strict=True):
                found[i] += [entry.name] if flag else []
    return found


def _has(sample: Sample, needs: Sequence[str]) -> bool:
    return all(getattr(sample, name) is not None for name in needs)


# -- clusters ------------------------------------------------------------------------------------------------------


def clusters_of(failures: Sequence[Failure]) -> dict[str, list[Failure]]:
    """Failures by what is wrong with them, then by their words; large clusters first, each most rewarded first.

    The same answer to the same prompt counts once. A cluster's name is its kinds and, where its kind has several, the
    words that mark it.
    """
    of_kind: dict[tuple[str, ...], dict[tuple[str, str], Failure]] = defaultdict(dict)
    for failure in sorted(failures, key=_most_rewarded):
        of_kind[failure.kinds].setdefault((failure.sample.prompt_id, failure.sample.answer), failure)
    found: dict[str, list[Failure]] = {}
    for kinds, each in of_kind.items():
        members = list(each.values())[:MOST_CLUSTERED]
        for marks, group in by_words([failure.sample.answer for failure in members]):
            name = " + ".join(kinds) + (f" ({', '.join(marks)})" if marks else "")
            found[name] = [members[i] for i in group]
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def by_words(answers: Sequence[str]) -> list[tuple[tuple[str, ...], list[int]]]:
    """Answers in up to `MOST_CLUSTERS` groups with similar words: the words that mark each, and who is in it.

    Ward's clusters of TF-IDF vectors of length 1, over words and word pairs that a tenth of the answers share: names
    and numbers, which come and go with the prompt, say nothing of a kind. No seed is involved.
    """
    whole: list[tuple[tuple[str, ...], list[int]]] = [((), list(range(len(answers))))]
    grams = [[*found, *(" ".join(pair) for pair in pairwise(found))]
             for found in map(words, answers)]
    documents = Counter(gram for each in grams for gram in set(each))
    terms = [gram for gram, count in sorted(documents.items(), key=lambda item: (-item[1], item[0]))[:TERMS]
             if max(3, len(answers) / 10) <= count < len(answers)]
    if len(answers) < LEAST_CLUSTERED or not terms:
        return whole
    place = {gram: i for i, gram in enumerate(terms)}
    vectors = np.zeros((len(answers), len(terms)))
    for row, each in zip(vectors, grams, strict=True):
        for gram in each:
            if gram in place:
                row[place[gram]] += 1
    vectors *= np.log(len(answers) / np.array([documents[gram] for gram in terms]))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    most = min(MOST_CLUSTERS, len(answers) // (LEAST_CLUSTERED // 2))
    member = fcluster(linkage(vectors, method="ward"), most, criterion="maxclust")
    groups = [np.flatnonzero(member == number) for number in np.unique(member)]
    if len(groups) == 1:
        return whole
    return [(_marks(vectors, group, terms), group.tolist()) for group in groups]


def _marks(vectors: NDArray[np.float64], group: NDArray[np.intp], terms: Sequence[str]) -> tuple[str, ...]:
    """The three terms with the largest mean weight in the group over that outside."""
    apart = np.delete(vectors, group, axis=0)
    lead = vectors[group].mean(0) - apart.mean(0)
    return tuple(terms[i] for i in np.argsort(-lead, kind="stable")[:3] if lead[i] > 0)


def _most_rewarded(failure: Failure) -> tuple[float, str, str]:
    reward = failure.sample.reward
    return (-reward if reward is not None else 0.0, failure.sample.prompt_id, failure.sample.answer)


# -- batches of comparisons ----------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What is proposed, and what it was chosen from."""

    proposals: list[Proposal]
    failures: dict[str, int]
    """By cluster: failed answers."""
    alone: int
    """Failed answers without a better one to the same prompt, which cannot be compared."""


def targeted_batch(rollouts: Sequence[Sample], *, better: Mapping[str, str], n: int,
                   extra: Sequence[Sample] = ()) -> Batch:
    """`n` comparisons or fewer, stratified over the clusters of failures in the later half of a run. Deterministic.

    `rollouts` in order of their steps, those of the start at steps 0 and 1. `extra`: more answers to the same prompts,
    such as fresh ones of the start. `better`: see `failures_of`. DataError where nothing failed.
    """
    steps = sorted({sample.step for sample in rollouts})
    late = steps[len(steps) // 2] if steps else 0
    pool = [sample for sample in (*rollouts, *extra) if sample.answer.strip()]
    wrong = failures_of(pool, [sample for sample in pool if sample.step <= 1], better)
    of_prompt: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(pool):
        of_prompt[sample.prompt_id].append(i)
    failed, alone = [], 0
    for i, (sample, kinds) in enumerate(zip(pool, wrong, strict=True)):
        if kinds and sample.step >= max(late, 2):
            others = [pool[k] for k in of_prompt[sample.prompt_id] if is_better(pool, wrong, k, i)]
            alone += not others
            failed += [Failure(sample, tuple(kinds), min(others, key=_most_plausible))] if others else []
    if not failed and not alone:
        raise DataError(f"no answer from step {max(late, 2)} on shows a failure; what shows one are measures, or else "
                        f"signs in comparison with {LEAST_START} answers of the start (steps 0 and 1)")
    clusters = clusters_of(failed)
    return Batch([Proposal(suspect=failure.sample, better=failure.better, kinds=failure.kinds, cluster=name)
                  for name, failure in stratified(clusters, n)],
                 {name: len(group) for name, group in clusters.items()}, alone)


def is_better(pool: Sequence[Sample], wrong: Sequence[Sequence[str]], k: int, i: int) -> bool:
    """Whether answer k is plausibly better than answer i: more gold where both know it, else fewer failures."""
    if pool[k].answer == pool[i].answer:
        return False
    gold, other = (pool[j].measures.get("gold") for j in (i, k))
    return other > gold if gold is not None and other is not None else len(wrong[k]) < len(wrong[i])


def _most_plausible(sample: Sample) -> tuple[float, bool, float, str]:
    """Most gold first, then the start's answers, then the least rewarded: a reward alone speaks for no answer here."""
    return (-(sample.measures.get("gold") or 0.0), sample.step > 1, sample.reward or 0.0, sample.answer)


def stratified(clusters: Mapping[str, Sequence[Failure]], n: int) -> list[tuple[str, Failure]]:
    """One failure of each cluster in turn, until there are `n` or none is left; other prompts before the same again."""
    queues = {name: deque(_prompts_in_turn(group)) for name, group in clusters.items()}
    chosen: list[tuple[str, Failure]] = []
    while len(chosen) < n and any(queues.values()):
        chosen += [(name, queue.popleft()) for name, queue in queues.items() if queue][:n - len(chosen)]
    return chosen


def _prompts_in_turn(group: Sequence[Failure]) -> list[Failure]:
    seen: Counter[str] = Counter()
    turns = []
    for place, failure in enumerate(group):
        turns.append((seen[failure.sample.prompt_id], place))
        seen[failure.sample.prompt_id] += 1
    return [group[place] for _, place in sorted(turns)]


def random_batch(samples: Sequence[Sample], *, n: int, seed: int) -> Batch:
    """`n` comparisons or fewer of two distinct answers to a prompt drawn at random: what targeting is measured against.

    Prompts are drawn first, without replacement, so that a prompt with many answers does not count for more.
    """
    of_prompt: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in samples:
        if sample.answer.strip():
            of_prompt[sample.prompt_id].setdefault(sample.answer, sample)
    prompts = sorted(name for name, answers in of_prompt.items() if len(answers) > 1)
    random = Random(seed)
    drawn = random.sample(prompts, min(n, len(prompts)))
    pairs = [random.sample(sorted(of_prompt[name].values(), key=lambda s: s.answer), 2) for name in drawn]
    return Batch([Proposal(suspect=a, better=b, kinds=(), cluster="random") for a, b in pairs],
                 {"random": len(prompts)}, len(of_prompt) - len(prompts))
