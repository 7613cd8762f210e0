"""The reward role on labels that people gave, beside TRL's RewardTrainer, length alone and a bag of words.

    python benchmarks/human_data.py                        400 training and 200 held-out pairs a set, on a CPU: hours
    python benchmarks/human_data.py --device cuda --all    all rows of all sets, on one GPU: minutes
    python benchmarks/human_data.py --sides baselines      no model at all

Each set and each side is a piece in a process of its own, kept as JSON under --out, so that a stopped run goes on with
the next piece. `--write docs/results/human-data.md` fills the page's tables after every piece. `--jobs 4` works on four
sets at a time; what it says of seconds is then no comparison. Sides: baselines, ours, trl (its defaults), trl-rate (our
learning rate). TRL 1.16 is used where this Python has it, else it is installed once into its own environment;
`--installed` takes this Python's, in any version. `--pairs 16 --held-out 8 --model tiny-llama` goes through all of it.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

from peers.human import SETS, SIDES, Piece
from peers.install import PEERS, environment
from peers.job import run_module

BASELINES = {"length": "length alone", "words": "bag of words"}


def main() -> None:
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    page = Lock()

    def one_set(name: str) -> None:
        """All pieces of a set, in order."""
        for piece in pieces(options):
            done = Path(piece.folder) / f"{piece.side}.json"
            if piece.set != name or done.is_file():
                continue
            print(f"{name}: {piece.side} ...", file=sys.stderr, flush=True)
            run_piece(piece, done, options)
            print(f"{name}: {piece.side} done", file=sys.stderr, flush=True)
            with page:
                write(options)

    with ThreadPoolExecutor(options.jobs) as threads:
        failed = [error for work in [threads.submit(one_set, name) for name in options.sets]
                  if (error := work.exception()) is not None]
    print(write(options))
    if failed:
        raise failed[0]


def write(options: argparse.Namespace) -> str:
    """The tables of the pieces there are; put on the page where one is named."""
    text = table(results(options))
    if options.write and text:
        from peers.report import write_page

        from rlhflab.runs.folder import environment as machine
        write_page(options.write, name_of(options), text, machine(), shlex.join(["python", *sys.argv]))
    return text


def parsed() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    made.add_argument("--sides", nargs="+", choices=SIDES, default=["baselines", "ours", "trl"])
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--all", action="store_true", help="all rows, a fifth of the prompts held out")
    made.add_argument("--pairs", type=int, default=400, help="training pairs a set")
    made.add_argument("--held-out", type=int, default=200, help="held-out pairs a set")
    made.add_argument("--jobs", type=int, default=1, help="sets worked on at a time")
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--batch", type=int, default=8, help="prompts (ours) or pairs (TRL) an optimizer step")
    made.add_argument("--micro-tokens", type=int, help="of ours, tokens a forward pass; default: 1024, on a GPU 16384")
    made.add_argument("--prompt-tokens", type=int, help="longer prompts lose their start; default: 384, on a GPU 768")
    made.add_argument("--answer-tokens", type=int, help="longer answers lose their end; default: 192, on a GPU 512")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "preferences")
    made.add_argument("--out", type=Path, default=Path("runs/human-data"), help="folder of the pieces")
    made.add_argument("--cache", type=Path, help="folder of the peers' environments; default: ~/.cache/rlhflab/peers")
    made.add_argument("--installed", action="store_true", help="take TRL as this Python has it, in any version")
    made.add_argument("--write", type=Path, help="page whose place for this table is filled")
    return made.parse_args()


def name_of(options: argparse.Namespace) -> str:
    """The place on the page, and the folder of the pieces."""
    if options.sides == ["baselines"] and options.all:
        return "baselines"
    return f"{options.device}, {'all rows' if options.all else f'{options.pairs} pairs'}"


def pieces(options: argparse.Namespace) -> Iterator[Piece]:
    """What is to be done, the rows of a set before its sides."""
    gpu = options.device == "cuda"
    size = "all" if options.all else f"{options.pairs}-{options.held_out}"
    for name in options.sets:
        folder = options.out / f"{options.device}-{size}-{Path(options.model).name}-seed{options.seed}" / name
        for side in ("rows", *options.sides):
            yield Piece(set=name, side=side, folder=str(folder.resolve()), data=str((options.data / name).resolve()),
                        model=options.model, device=options.device, everything=options.all, pairs=options.pairs,
                        held_out=options.held_out, batch=options.batch, seed=options.seed,
                        micro_tokens=options.micro_tokens or (16384 if gpu else 1024),
                        prompt_tokens=options.prompt_tokens or (768 if gpu else 384),
                        answer_tokens=options.answer_tokens or (512 if gpu else 192))


def run_piece(piece: Piece, done: Path, options: argparse.Namespace) -> None:
    """One piece in its own process; its result appears whole or not at all."""
    done.parent.mkdir(parents=True, exist_ok=True)
    asked, unfinished = (done.with_name(f".{piece.side}.{what}.json") for what in ("asked", "unfinished"))
    theirs = piece.side.startswith("trl")
    if theirs:  # the peer's Python need not have this package
        from rlhflab.model.load import model_folder

        piece = replace(piece, model=str(model_folder(piece.model)[0]))
    asked.write_text(json.dumps(asdict(piece)), encoding="utf-8")
    run_module(peer_python(options) if theirs else Path(sys.executable),
               "peers.human_trl" if theirs else "peers.human_ours", asked, unfinished)
    os.replace(unfinished, done)
    asked.unlink()


def peer_python(options: argparse.Namespace) -> Path:
    """The Python that runs now, where it has the peer as it is wanted, else the one of the peer's environment."""
    if options.installed:
        return Path(sys.executable)
    wanted = dict(pin.split("==") for pin in PEERS["trl"])["trl"]
    try:
        if version("trl") == wanted:
            return Path(sys.executable)
    except PackageNotFoundError:
        pass
    cache = options.cache or Path(os.environ.get("RLHFLAB_CACHE", Path.home() / ".cache" / "rlhflab")) / "peers"
    return environment("trl", cache)


def results(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By set and side, what the pieces say."""
    found: dict[str, dict[str, Any]] = {}
    for piece in pieces(options):
        done = Path(piece.folder) / f"{piece.side}.json"
        if done.is_file() and piece.side != "rows":
            found.setdefault(piece.set, {})[piece.side] = json.loads(done.read_text(encoding="utf-8"))
    return found


# -- the table -------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Held-out accuracy by set and side, the paired differences, and how long it took."""
    trained = [side for side in SIDES if any(side in sides for sides in found.values()) and side != "baselines"]
    parts = []
    if trained:
        parts += [accuracy_table(found, trained), differences_table(found, trained)]
    folds = {name: sides["baselines"]["folds"] for name, sides in found.items() if "baselines" in sides}
    if folds:
        parts.append(folds_table(folds))
    return "\n\n".join(parts)


def accuracy_table(found: Mapping[str, Mapping[str, Any]], trained: Sequence[str]) -> str:
    """Every side on the same held-out pairs."""
    lines = ["| set | training pairs | held-out pairs (prompts) | " + " | ".join([*BASELINES.values(), *trained])
             + " | seconds: " + ", ".join(trained) + " |", "|---" * (len(trained) + len(BASELINES) + 4) + "|"]
    for name, sides in found.items():
        rights = rights_of(sides)
        if not rights:
            continue
        any_side = next(iter(sides.values()))
        prompts = any_side["prompts"]
        cells = [said(rate(rights[side], prompts)) if side in rights else "-" for side in (*BASELINES, *trained)]
        seconds = ", ".join(f"{sides[side]['seconds']:.0f}" if side in sides else "-" for side in trained)
        lines.append(f"| {name} | {any_side['training_pairs']} | {len(prompts)} ({len(set(prompts))}) | "
                     + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(lines)


def differences_table(found: Mapping[str, Mapping[str, Any]], trained: Sequence[str]) -> str:
    """Ours less each other side, on the same pairs."""
    from rlhflab.core.stats import paired_change

    others = [*BASELINES, *(side for side in trained if side != "ours")]
    lines = ["| set | " + " | ".join(f"ours less {BASELINES.get(other, other)}" for other in others) + " |",
             "|---" * (len(others) + 1) + "|"]
    for name, sides in found.items():
        rights = rights_of(sides)
        cells = [said(paired_change(rights["ours"], rights[other], sides["ours"]["prompts"]), sign=True)
                 if "ours" in rights and other in rights else "-" for other in others]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def folds_table(folds: Mapping[str, Mapping[str, Any]]) -> str:
    """The baselines over all rows, each prompt held out once."""
    lines = ["| five folds by prompt, all rows | pairs (prompts) | " + " | ".join(BASELINES.values()) + " |",
             "|---" * (len(BASELINES) + 2) + "|"]
    for name, each in folds.items():
        cells = [said(rate(each[key], each["prompts"])) for key in BASELINES]
        lines.append(f"| {name} | {len(each['prompts'])} ({len(set(each['prompts']))}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rights_of(sides: Mapping[str, Any]) -> dict[str, list[float]]:
    """By side, 1 where a held-out pair is ordered right, a half for equal scores. The pairs must be the same ones."""
    prompts = {side: each["prompts"] for side, each in sides.items()}
    if len({tuple(each) for each in prompts.values()}) > 1:
        raise SystemExit("the pieces of one set are of different held-out pairs; remove its folder and run it again")
    rights = {side: each["right"] for side, each in sides.items() if side != "baselines"}
    return rights | ({key: sides["baselines"][key] for key in BASELINES} if "baselines" in sides else {})


def rate(right: Sequence[float], prompts: Sequence[str]) -> Any:
    from rlhflab.core.stats import mean_interval

    return mean_interval(right, prompts)


def said(value: Any, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{value.mean:{plus}.3f} [{value.low:{plus}.3f}, {value.high:{plus}.3f}]"


if __name__ == "__main__":
    main()
