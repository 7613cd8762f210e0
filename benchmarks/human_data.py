"""The reward role on labels that people gave, beside TRL's RewardTrainer, length alone and a bag of words.

    python benchmarks/human_data.py                        400 training and 200 held-out pairs a set, on a CPU: hours
    python benchmarks/human_data.py --device cuda --all    all rows of all sets, on one GPU: minutes
    python benchmarks/human_data.py --sides baselines      no model at all

Each set and each side is a piece in a process of its own, kept as JSON under --out, so that a stopped run goes on with
the next piece. `--write docs/results/human-data.md` fills the page's tables after every piece, with all pieces of these
settings: a second run with other --sets, at the same time too, adds its own. `--jobs 4` works on four sets at a time;
what either says of seconds is then no comparison. Sides: baselines, ours, trl (its defaults), trl-rate (our learning
rate). Precision is the same on both sides: bf16 where the device multiplies it natively, else fp32. TRL 1.16 is used
where this Python has it, else it is installed once into its own environment; `--installed` takes this Python's, in any
version. `--pairs 16 --held-out 8 --model tiny-llama` goes through all of it.
"""

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peers.human import SETS, SIDES, Piece
from peers.install import PEERS, environment
from peers.job import run_module

BASELINES = {"length": "length alone", "words": "bag of words"}
PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}


def main() -> None:
    from rlhflab.runs.claims import claim

    options = settled(parsed())

    def one_set(name: str) -> None:
        """All pieces of a set, in order; a set that another process works on is waited for."""
        with claim(folder_of(options, name) / ".lock", wait=True):
            for piece in pieces(options, [name], options.sides):
                done = Path(piece.folder) / f"{piece.side}.json"
                if done.is_file():
                    continue
                print(f"{name}: {piece.side} ...", file=sys.stderr, flush=True)
                run_piece(piece, done, options)
                print(f"{name}: {piece.side} done", file=sys.stderr, flush=True)
                write(options)

    with ThreadPoolExecutor(options.jobs) as threads:
        failed = [error for work in [threads.submit(one_set, name) for name in options.sets]
                  if (error := work.exception()) is not None]
    print(write(options))
    if failed:
        raise failed[0]


def write(options: argparse.Namespace) -> str:
    """The tables of the pieces there are, of this run or another; put on the page where one is named."""
    from peers.report import write_page

    from rlhflab.runs.claims import claim
    from rlhflab.runs.folder import environment as machine
    with claim(options.out / ".page.lock", wait=True):  # held while they are read, or an older table might come last
        found = results(options)
        text = table(found)
        if options.write and text:
            commands = dict.fromkeys(side["command"] for sides in found.values() for side in sides.values())
            write_page(options.write, name_of(options), text, machine(), "`\n\n`".join(commands))
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
    made.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto",
                      help="of the base and its products, ours and TRL's; auto: bf16 where the device has it natively")
    made.add_argument("--micro-tokens", type=int, help="of ours, tokens a forward pass; default: 1024, on a GPU 16384")
    made.add_argument("--micro-pairs", type=int, help="of TRL, pairs a forward pass; default: 2, on a GPU the batch")
    made.add_argument("--prompt-tokens", type=int, help="longer prompts lose their start; default: 384, on a GPU 768")
    made.add_argument("--answer-tokens", type=int, help="longer answers lose their end; default: 192, on a GPU 512")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "preferences")
    made.add_argument("--out", type=Path, default=Path("runs/human-data"), help="folder of the pieces")
    made.add_argument("--cache", type=Path, help="folder of the peers' environments; default: ~/.cache/rlhflab/peers")
    made.add_argument("--installed", action="store_true", help="take TRL as this Python has it, in any version")
    made.add_argument("--write", type=Path, help="page whose place for this table is filled")
    return made.parse_args()


def settled(options: argparse.Namespace) -> argparse.Namespace:
    """The options with what depends on the device filled in. SystemExit where TRL's micro-batches do not fit."""
    gpu = options.device == "cuda"
    if options.precision == "auto":
        from rlhflab.model.load import native_dtype

        options.precision = PRECISIONS[native_dtype(options.device)]
    options.micro_tokens = options.micro_tokens or (16384 if gpu else 1024)
    options.micro_pairs = options.micro_pairs or (options.batch if gpu else math.gcd(options.batch, 2))
    options.prompt_tokens = options.prompt_tokens or (768 if gpu else 384)
    options.answer_tokens = options.answer_tokens or (512 if gpu else 192)
    if options.batch % options.micro_pairs:
        raise SystemExit(f"--micro-pairs {options.micro_pairs} does not divide --batch {options.batch}, and TRL "
                         "would take other optimizer steps")
    return options


def name_of(options: argparse.Namespace) -> str:
    """The place on the page."""
    if options.sides == ["baselines"] and options.all:
        return "baselines"
    return f"{options.device}, {'all rows' if options.all else f'{options.pairs} pairs'}"


def folder_of(options: argparse.Namespace, name: str) -> Path:
    """Of a set's pieces: another for all that may change what they say."""
    size = "all" if options.all else f"{options.pairs}-{options.held_out}"
    settings = (options.device, size, Path(options.model).name, options.precision,
                f"{options.prompt_tokens}-{options.answer_tokens}", f"batch{options.batch}", f"seed{options.seed}")
    return Path(options.out).resolve() / "-".join(settings) / name


def pieces(options: argparse.Namespace, sets: Sequence[str], sides: Sequence[str]) -> Iterator[Piece]:
    """What is to be done, the rows of a set before its sides."""
    for name in sets:
        for side in ("rows", *sides):
            yield Piece(set=name, side=side, folder=str(folder_of(options, name)),
                        data=str((options.data / name).resolve()), model=options.model, device=options.device,
                        precision=options.precision, everything=options.all, pairs=options.pairs,
                        held_out=options.held_out, batch=options.batch, seed=options.seed,
                        micro_tokens=options.micro_tokens, micro_pairs=options.micro_pairs,
                        prompt_tokens=options.prompt_tokens, answer_tokens=options.answer_tokens,
                        command=shlex.join(["python", *sys.argv]))


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
    """By set and side, what the pieces of these settings say, whichever run made them."""
    found: dict[str, dict[str, Any]] = {}
    sides = options.sides if name_of(options) == "baselines" else SIDES
    for piece in pieces(options, SETS, sides):
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
        parts += [caption(found, trained), accuracy_table(found, trained), differences_table(found, trained)]
    folds = {name: sides["baselines"]["folds"] for name, sides in found.items() if "baselines" in sides}
    if folds:
        parts.append(folds_table(folds))
    return "\n\n".join(parts)


def caption(found: Mapping[str, Mapping[str, Any]], trained: Sequence[str]) -> str:
    """Precision, lengths and batches that the trained sides say of themselves."""
    said_by = [sides[side] for sides in found.values() for side in trained if side in sides]

    def values(name: str, of: Sequence[Mapping[str, Any]] = said_by) -> str:
        return " or ".join(dict.fromkeys(str(each[name]) for each in of))

    text = (f"Every side in {values('precision')}; prompts of at most {values('prompt_tokens')} tokens, answers of at "
            f"most {values('answer_tokens')}; batches of {values('batch')}; threads of a process: {values('threads')}")
    theirs = [each for each in said_by if each["side"].startswith("trl")]
    return f"{text}; TRL reads {values('micro_pairs', theirs)} pairs at a time." if theirs else f"{text}."


def accuracy_table(found: Mapping[str, Mapping[str, Any]], trained: Sequence[str]) -> str:
    """Every side on the same held-out pairs."""
    lines = ["| set | training pairs | held-out pairs (prompts) | cut | " + " | ".join([*BASELINES.values(), *trained])
             + " | seconds: " + ", ".join(trained) + " |", "|---" * (len(trained) + len(BASELINES) + 5) + "|"]
    for name, sides in found.items():
        rights = rights_of(sides)
        if not rights:
            continue
        any_side = next(iter(sides.values()))
        prompts = any_side["prompts"]
        cells = [said(rate(rights[side], prompts)) if side in rights else "-" for side in (*BASELINES, *trained)]
        seconds = ", ".join(f"{sides[side]['seconds']:.0f}" if side in sides else "-" for side in trained)
        lines.append(f"| {name} | {any_side['training_pairs']} | {len(prompts)} ({len(set(prompts))}) | "
                     f"{any_side['cut']:.0%} | " + " | ".join(cells) + f" | {seconds} |")
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
