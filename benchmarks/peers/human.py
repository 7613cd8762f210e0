"""What the pieces of `benchmarks/human_data.py` are told, and the rows that both sides read. No torch here."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETS = ("tldr_comparisons", "hh_harmless_test", "qa_feedback", "oasst_en_100")
SIDES = ("baselines", "ours", "trl", "trl-rate")
RATE = 1e-3
"""Learning rate of our recipe for a reward model, and of `trl-rate`; that of `trl` is TRL's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One side of one set."""

    set: str
    side: str
    """rows, or one of SIDES."""
    folder: str
    """Of the set's pieces and rows."""
    data: str
    """Folder with the set's pairs.jsonl."""
    model: str
    """A name of the lab; for TRL, a transformers folder."""
    device: str
    precision: str
    """bf16 or fp32, of both sides."""
    everything: bool
    """All rows; else `pairs` and `held_out` many."""
    pairs: int
    held_out: int
    batch: int
    micro_tokens: int
    micro_pairs: int
    """Pairs that TRL reads at a time; divides the batch."""
    prompt_tokens: int
    answer_tokens: int
    seed: int
    command: str = ""
    """By which it was asked for."""

    def rows(self, part: str) -> list[dict[str, Any]]:
        """`train` or `held_out`, as `rows` wrote them."""
        return [json.loads(line) for line in (Path(self.folder) / f"{part}.jsonl").read_text(
            encoding="utf-8").splitlines()]

    def result(self, right: list[float], seconds: float, **more: Any) -> dict[str, Any]:
        """What a side says of the held-out pairs, of all it read and of itself."""
        train, held_out = self.rows("train"), self.rows("held_out")
        asked = {name: getattr(self, name) for name in ("set", "side", "precision", "batch", "prompt_tokens",
                                                        "answer_tokens", "command")}
        return {**asked, "training_pairs": len(train), "right": right, "seconds": seconds,
                "prompts": [row["prompt_id"] for row in held_out],
                "cut": sum(row["cut"] for row in (*train, *held_out)) / max(len(train) + len(held_out), 1), **more}


def ordered(chosen: list[float], rejected: list[float]) -> list[float]:
    """1 where the chosen answer scores higher, a half where both score alike."""
    return [float(a > b) + 0.5 * (a == b) for a, b in zip(chosen, rejected, strict=True)]


def serve(sides: Mapping[str, Callable[[Piece], dict[str, Any]]]) -> None:
    """The main function of a worker: `python -m peers.MODULE asked.json done.json`."""
    piece = Piece(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(sides[piece.side](piece)), encoding="utf-8")
