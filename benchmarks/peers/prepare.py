"""Rows and adapters that both sides start from, written into a folder: `python -m peers.prepare order.json done.json`.

Rows are cut to whole tokens and kept only where both ways to tokenise them, apart and in one string, give the same
tokens. The adapters' B is not 0, so that a side that ignored them would be found out.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from peers.job import HERE
from rlhflab.config import Lora
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import Row, read_pairs, read_rows
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.errors import DataError
from rlhflab.model.load import model_folder
from rlhflab.model.shared import SharedModel
from rlhflab.scenarios import scenario

ROWS = HERE.parent.parent / "shared" / "data" / "preferences" / "hh_harmless_test" / "pairs.jsonl"
"""Public preference pairs kept beside the checkout where there are any."""
SPREAD = 0.01
"""Deviation of B: the adapter then moves each layer's output by a few per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to prepare."""

    model: str
    folder: str
    count: int
    rows: str | None = None
    """None: `ROWS` where it is there, else the help desk's."""
    prompt_tokens: int = 256
    answer_tokens: int = 128
    rank: int = 16
    alpha: float = 32
    seed: int = 0


def prepare(order: Order) -> dict[str, Any]:
    """Write rows.jsonl and roles/ into the order's folder; where they and the model are."""
    model = SharedModel.load(order.model, dtype="float32", device="cpu")
    folder = Path(order.folder)
    chat = ChatFormat(model.tokenizer)
    path = Path(order.rows) if order.rows else ROWS
    pairs = preferences(path) if path.is_file() or order.rows else helpdesk_pairs(8 * order.count)
    rows = list(fitting(chat, pairs, order))
    if len(rows) < order.count:
        raise DataError(f"{path}: {len(rows)} rows can be used, and {order.count} are asked for")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not (folder / "roles").is_dir():
        write_roles(model, order, folder / "roles")
    return {"model": str(model_folder(order.model)[0]), "rows": str(folder / "rows.jsonl"),
            "roles": str(folder / "roles"), "source": path.parent.name if path.is_file() else "helpdesk"}


def preferences(path: Path) -> Iterator[PreferencePair]:
    """Pairs as the lab reads them, or with `response_a`, `response_b` and `label`."""
    rows = list(read_rows(path))
    if "response_a" not in rows[0].values:
        yield from read_pairs(path)
        return
    for row in rows:
        if row.values["label"] in ("a", "b"):
            yield labelled(row)


def labelled(row: Row) -> PreferencePair:
    """The pair of a row that names the better of two responses."""
    better, worse = ("a", "b") if row.values["label"] == "a" else ("b", "a")
    return PreferencePair(prompt=Prompt(id=row.id, messages=row.prompt()),
                          chosen=str(row.values[f"response_{better}"]), rejected=str(row.values[f"response_{worse}"]))


def helpdesk_pairs(count: int) -> Iterator[PreferencePair]:
    """Answers of the help desk's demonstrations, each against the answer to the next question."""
    made = scenario("helpdesk").demonstrations(count)
    for one, other in pairwise(made):
        if one.messages[-1].content != other.messages[-1].content:
            yield PreferencePair(prompt=Prompt(id=one.id, messages=one.messages[:-1]),
                                 chosen=one.messages[-1].content, rejected=other.messages[-1].content)


def fitting(chat: ChatFormat, pairs: Iterable[PreferencePair], order: Order) -> Iterator[dict[str, Any]]:
    """The first `count` rows, cut, one a prompt, whose tokens do not depend on how they are tokenised."""
    seen: set[tuple[Message, ...]] = set()
    for pair in pairs:
        if len(seen) == order.count:
            return
        prompt = cut_prompt(chat, pair.prompt, order.prompt_tokens)
        sides = [cut_answer(chat, text, order.answer_tokens) for text in (pair.chosen, pair.rejected)]
        if prompt is None or prompt.messages in seen or not all(sides) or sides[0] == sides[1]:
            continue
        text = chat.tokenizer.decode(chat.prompt(prompt))
        if all(ids_of(chat, text + side + chat.turn_end) == [*chat.prompt(prompt), *chat.answer(side)]
               for side in sides):
            seen.add(prompt.messages)
            yield {"id": prompt.id, "messages": [{"role": m.role, "content": m.content} for m in prompt.messages],
                   "prompt": text, "chosen": sides[0], "rejected": sides[1]}


def cut_prompt(chat: ChatFormat, prompt: Prompt, longest: int) -> Prompt | None:
    """The prompt without the start of its last turn, so that it has at most `longest` tokens; None if it cannot."""
    over = len(chat.prompt(prompt)) - longest
    if over <= 0:
        return prompt
    *before, last = prompt.messages
    kept = ids_of(chat, last.content)[over:]
    if not kept:
        return None
    shorter = replace(prompt, messages=(*before, replace(last, content=chat.tokenizer.decode(kept).strip())))
    return shorter if len(chat.prompt(shorter)) <= longest else None


def cut_answer(chat: ChatFormat, text: str, longest: int) -> str:
    """The start of an answer: at most `longest` tokens with the one that ends it."""
    return str(chat.tokenizer.decode(ids_of(chat, text)[:longest - 1]).strip())


def ids_of(chat: ChatFormat, text: str) -> list[int]:
    """Token ids of a text, nothing added."""
    ids: list[int] = chat.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def write_roles(model: SharedModel, order: Order, folder: Path) -> None:
    """A policy and a reward role with its head, neither of them the base."""
    generator = torch.Generator().manual_seed(order.seed)
    lora = Lora(rank=order.rank, alpha=order.alpha)
    for name, head in (("policy", "none"), ("reward", "random")):
        model.add_role(name, lora, head=head, seed=order.seed)  # type: ignore[arg-type]
        with torch.no_grad():
            for key, tensor in model.adapter(name).items():
                if "lora_B" in key:
                    tensor.copy_(SPREAD * torch.randn(tensor.shape, generator=generator))
        model.save_role(name, folder / name)
        model.drop_role(name)


if __name__ == "__main__":
    asked, done = map(Path, sys.argv[1:])
    done.write_text(json.dumps(prepare(Order(**json.loads(asked.read_text())))))
