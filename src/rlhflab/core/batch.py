"""The one tensor layout: scored tokens. SFT, reward model, DPO and PPO all use it.

A prompt is stored once and its answers branch off it. Instead of padding masks, shifts by one and prompt masks,
a batch says which hidden state predicts which scored token of which answer. Axes: b rows, t columns, s scored
tokens, n answers. One row a prompt, rows padded on the right with branch -1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PROMPT, PAD = 0, -1
"""Values of `Batch.branch` that are not an answer (answers of a row count from 1)."""
SHELF = 2**18
"""Tokens whose trunks are kept for data that comes again: 300 MB in bf16 at a width of 576."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """The tokens of one answer; `scored` marks those that count (all, unless a later user turn lies between)."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("an answer needs at least one token (its end-of-turn token)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A prompt and the answers that branch off it."""

    prompt: tuple[int, ...]
    answers: tuple[TokenAnswer, ...]

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt needs at least one token: its last hidden state predicts the first answer token")

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(answer.ids) for answer in self.answers)

    @property
    def scored_tokens(self) -> int:
        """How many tokens of its answers count."""
        return sum(sum(answer.scored) if answer.scored else len(answer.ids) for answer in self.answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceTree:
    """The judged answers to one prompt: each answer is stored once, in however many pairs it was judged."""

    tree: Tree
    chosen: tuple[int, ...]
    """Number within the tree of the preferred answer of each pair ..."""
    rejected: tuple[int, ...]
    """... and of the other one."""
    strength: tuple[float, ...]
    """How clear each preference is, in (0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbTree:
    """The answers to one prompt that were judged each on its own: each answer is stored once, however often."""

    tree: Tree
    judged: tuple[int, ...]
    """Number within the tree of the answer of each thumb ..."""
    good: tuple[bool, ...]
    """... and whether it was found good."""


@dataclass(slots=True, eq=False)
class Trunk:
    """Hidden states of a batch below the first block that a run adapts, where they are the same for all its roles.

    The first role that reads the batch leaves them here, the others go on from them.
    """

    adapters: tuple[str, ...] = ()
    """The frozen adapters they were made with."""
    states: Float[Tensor, "b t d"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Trees as tensors. A token sees the earlier tokens of its own branch and of its prompt."""

    tokens: Int[Tensor, "b t"]
    position: Int[Tensor, "b t"]
    """Rotary position: an answer continues from its prompt, whatever column it is stored in."""
    branch: Int[Tensor, "b t"]
    """PROMPT, 1.. for the row's answers, PAD."""
    source: Int[Tensor, " s"]
    """Index into the flattened (b t) of the hidden state that predicts ..."""
    target: Int[Tensor, " s"]
    """... this token id ..."""
    owner: Int[Tensor, " s"]
    """... which belongs to this answer, counted over the batch in tree order."""
    last: Int[Tensor, " n"]
    """Index into (b t) of each answer's last token: where a reward is read."""
    trunk: Trunk = field(default_factory=Trunk)

    @property
    def answers(self) -> int:
        """Number of answers, n."""
        return self.last.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`, nothing of it read yet."""
        return Batch(**{name: getattr(self, name).to(device) for name in self.__slots__ if name != "trunk"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRow:
    """The tokens of a batch in one row without the padding between them, u columns; the last ones may be padding."""

    tokens: Int[Tensor, "1 u"]
    position: Int[Tensor, "1 u"]
    branch: Int[Tensor, "1 u"]
    document: Int[Tensor, "1 u"]
    """Row of the batch that a token is from; PAD for padding. Tokens of different rows do not see each other."""
    place: Int[Tensor, " k"]
    """Index into the flattened (b t) of each of the first k columns, which are no padding."""

    @classmethod
    def of(cls, batch: Batch, *, multiple: int) -> "OneRow":
        """As many columns as `multiple` divides, so that few lengths occur."""
        branch = batch.branch.flatten()
        place = (branch != PAD).nonzero().squeeze(-1)
        more = -len(place) % multiple
        row = torch.arange(len(batch.tokens), device=branch.device).repeat_interleave(batch.tokens.shape[1])

        def gathered(values: Tensor, filling: int) -> Tensor:
            return torch.nn.functional.pad(values.flatten()[place], (0, more), value=filling)[None]

        return cls(tokens=gathered(batch.tokens, 0), position=gathered(batch.position, 0),
                   branch=gathered(branch, PAD), document=gathered(row, PAD), place=place)


class Shelf:
    """Packs trees, some of them again and again, and remembers their trunks up to `room` tokens (with padding)."""

    def __init__(self, *, room: int = SHELF) -> None:
        self.room = room
        """Tokens it can still take."""
        self._places: dict[Tree, tuple[Trunk, int]] = {}

    def pack(self, trees: Sequence[Tree], device: torch.device | str) -> Batch:
        """The trees as a batch on `device`, with the trunk that earlier batches have left, if all are known."""
        batch = pack(trees).to(device)
        places = [self._places[tree] for tree in trees if tree in self._places]
        made_with = {trunk.adapters if trunk.states is not None else None for trunk, _ in places}
        if len(places) == len(trees) and len(made_with) == 1 and None not in made_with:
            batch.trunk.adapters = places[0][0].adapters
            batch.trunk.states = _gathered(places, batch)
        elif not places and batch.tokens.numel() <= self.room:
            self.room -= batch.tokens.numel()
            self._places |= {tree: (batch.trunk, row) for row, tree in enumerate(trees)}
        return batch


def _gathered(places: Sequence[tuple[Trunk, int]], batch: Batch) -> Float[Tensor, "b t d"]:
    """The rows at `places`, cut or padded to the width of `batch`."""
    rows = [trunk.states[row, :batch.tokens.shape[1]] for trunk, row in places if trunk.states is not None]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def pack(trees: Sequence[Tree]) -> Batch:
    """One row a tree. Answers are counted in tree order: all of the first tree, then of the second ..."""
    width = max(len(tree) for tree in trees)
    tokens = torch.zeros(len(trees), width, dtype=torch.long)
    position = torch.zeros_like(tokens)
    branch = torch.full_like(tokens, PAD)
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    last: list[int] = []
    for row, tree in enumerate(trees):
        start, prompt_length = row * width, len(tree.prompt)
        ids, positions, branches = list(tree.prompt), list(range(prompt_length)), [PROMPT] * prompt_length
        for number, answer in enumerate(tree.answers, start=1):
            first, length = start + len(ids), len(answer.ids)
            # The prompt's last state predicts an answer's first token; then each token predicts the next.
            predicts = [start + prompt_length - 1, *range(first, first + length - 1)]
            scored = answer.scored or (True,) * length
            source += [s for s, counts in zip(predicts, scored, strict=True) if counts]
            target += [t for t, counts in zip(answer.ids, scored, strict=True) if counts]
            owner += [len(last)] * sum(scored)
            last.append(first + length - 1)
            ids += answer.ids
            positions += range(prompt_length, prompt_length + length)
            branches += [number] * length
        tokens[row, :len(ids)] = torch.tensor(ids)
        position[row, :len(ids)] = torch.tensor(positions)
        branch[row, :len(ids)] = torch.tensor(branches)
    return Batch(tokens=tokens, position=position, branch=branch, source=torch.tensor(source, dtype=torch.long),
                 target=torch.tensor(target, dtype=torch.long), owner=torch.tensor(owner, dtype=torch.long),
                 last=torch.tensor(last, dtype=torch.long))


def pair_index(trees: Sequence[PreferenceTree]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(chosen, rejected): the answer numbers of every pair, counted over the packed batch of `trees`."""
    answers = [each.tree for each in trees]
    return _in_batch(answers, [each.chosen for each in trees]), _in_batch(answers, [each.rejected for each in trees])


def thumb_index(trees: Sequence[ThumbTree]) -> tuple[Int[Tensor, " q"], Bool[Tensor, " q"]]:
    """(judged, good): the answer number of every thumb, counted over the packed batch of `trees`, and its label."""
    return (_in_batch([each.tree for each in trees], [each.judged for each in trees]),
            torch.tensor([good for each in trees for good in each.good], dtype=torch.bool))


def _in_batch(trees: Sequence[Tree], numbers: Sequence[tuple[int, ...]]) -> Int[Tensor, " q"]:
    """Answer numbers within their trees, counted over the packed batch of all trees."""
    before = accumulate((len(tree.answers) for tree in trees), initial=0)
    return torch.tensor([first + number for first, each in zip(before, numbers, strict=False) for number in each],
                        dtype=torch.long)


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups of item numbers of similar length whose padded size stays within `budget` tokens (or one item).

    Longest first, so that a batch that does not fit in memory fails at the first step, not at the last.
    """
    groups: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups
