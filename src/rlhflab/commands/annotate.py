"""Commands of human judgments: annotate, store, store import, store export, store correct."""

import getpass
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from rlhflab.commands.shared import DEFAULT_MODEL, Count, Json, Seed, print_value
from rlhflab.data.judging import STORE_SUFFIXES
from rlhflab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rlhflab.data.judging import Item
    from rlhflab.data.store import Store

Every = Annotated[int, Parameter(validator=Number(gte=0))]
Positive = Annotated[float, Parameter(validator=Number(gt=0))]


def annotate_command(*sources: str, store: str | None = None, annotator: list[str] | None = None,
                     adjudicator: list[str] | None = None, overlap: Count | None = None, gold_every: Every = 10,
                     repeat_every: Every = 0, lease_hours: Positive = 24.0, adapter: list[str] | None = None,
                     model: str = DEFAULT_MODEL, prompts: str = "helpdesk", n: Count = 100,
                     max_new_tokens: Count = 96, temperature: Positive = 0.7, seed: Seed = 0, skip_bad: bool = False,
                     host: str = "127.0.0.1",
                     port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8484,
                     token: Annotated[str | None, Parameter(env_var="RLHFLAB_TOKEN")] = None) -> None:
    """Judge answers in the browser: two side by side in random order, or single ones by thumbs.

    Runs until Ctrl-C. A judgment is in the store once the next page is there. Several people each get a link of
    their own.

    Args:
        sources: A store (a file ending in .sqlite, or a postgresql:// URL), and what is to be judged: files of
            comparisons, pairs or single answers in any format, or run folders with rollouts.jsonl.
        store: The store, where it is not among the sources; beside the first source where absent.
        annotator: A name, once for each person; your user name where absent.
        adjudicator: Who decides where judgments disagree, once for each person; a single annotator may, where absent.
        overlap: How many annotators judge each comparison; as the store says, at first 1, where absent.
        gold_every: About one in so many is an item with a known verdict (key gold); 0 for none.
        repeat_every: About one in so many is asked again, to see whether the verdict stays; 0 for none.
        lease_hours: How long a comparison stays with who opened it, when nothing else is left.
        adapter: Two adapter folders, or base and one, whose answers are written while you judge.
        model: Their base: a name of `rlhflab models`, a hub id, or a local transformers folder.
        prompts: What they answer: a JSONL file of prompts, or the name of a scenario.
        n: Prompts that they answer, or comparisons drawn from a run folder, at most.
        max_new_tokens: Longest answer they write, tokens.
        temperature: Of their answers.
        seed: Of their answers, and of what is drawn from a run folder.
        skip_bad: Leave broken rows of the files out and count them, instead of stopping at the first.
        host: The address to listen on; other machines reach 0.0.0.0, which needs a token.
        port: The port to listen on; 0 for any that is free.
        token: At least 16 random characters, from which the links are made, so that they stay the same next time.
    """
    _need_app()
    from rlhflab.app.annotate import Desk, annotation_app
    from rlhflab.app.server import Access, address, bind, serve
    from rlhflab.data.judging import Plan, check_name

    name, files = _store_and_sources(store, sources, adapter)
    people = tuple(check_name(each) for each in annotator or [_user()])
    deciders = tuple(check_name(each) for each in adjudicator or (people if len(people) == 1 else ()))
    access = Access.of(tuple(dict.fromkeys((*people, *deciders))), token=token, host=host)
    write = _writing(adapter, model=model, prompts=prompts, n=n, max_new_tokens=max_new_tokens,
                     temperature=temperature, seed=seed) if adapter else None
    bound = bind(host, port)  # Before anything is stored: a port in use changes nothing.
    opened = _opened(name)
    _take(opened, files, n=n, seed=seed, skip_bad=skip_bad)
    if overlap is not None:
        opened.set_overlap(overlap)
    before = opened.counts()
    if not before["comparisons"] + before["single_answers"] and write is None:
        raise DataError(f"{opened.name}: has nothing to judge; give a JSONL file or a run folder too")
    desk = Desk(store=opened, annotators=people, adjudicators=deciders, news=_fed(opened, write) if write else _quiet,
                plan=Plan(gold_every=gold_every, repeat_every=repeat_every, lease_hours=lease_hours))
    app = annotation_app(desk, access, cookie=f"rlhflab-{bound.getsockname()[1]}")
    print(f"{opened.name}: {before['waiting']} waiting, {before['judgments']} judgments. Ctrl-C ends it, nothing is "
          "lost.")
    for person in access.people:
        print(f"{person}: {access.link(address(bound), person)}")
    sys.stdout.flush()
    serve(app, bound)
    after = opened.counts()
    print(f"{after['judgments'] - before['judgments']} judgments more, {after['judgments']} in {opened.name}. "
          f"Next: rlhflab store export {opened.name} --out pairs.jsonl")
    opened.close()


def store_command(store: str, /, *, as_json: Json = False) -> None:
    """Say what an annotation store holds: comparisons, judgments, conflicts, who judged how many.

    Args:
        store: The store's file or its postgresql:// URL.
        as_json: Print it as JSON.
    """
    _need_app()
    opened = _opened(store, create=False)
    counts = opened.counts()
    print_value({"store": opened.name, **counts}, as_json)
    if not as_json:
        print(f"Next: rlhflab annotate {opened.name}" if counts["waiting"] or counts["conflicts"] else
              f"Next: rlhflab store export {opened.name} --out pairs.jsonl")


def store_import_command(store: str, /, *sources: str, n: Count = 100, seed: Seed = 0, skip_bad: bool = False,
                         as_json: Json = False) -> None:
    """Append what is to be judged to a store, and judgments that a file holds. What is there already stays as it is.

    Args:
        store: The store's file, made where there is none, or its postgresql:// URL.
        sources: Files of comparisons, pairs or single answers in any format of `rlhflab list formats`, or run folders.
        n: Comparisons drawn from a run folder, at most.
        seed: Of what is drawn from a run folder.
        skip_bad: Leave broken rows out and count them, instead of stopping at the first.
        as_json: Print what was added as JSON.
    """
    _need_app()
    if not sources:
        raise ConfigError("store import: needs a JSONL file or a run folder beside the store")
    files = [_existing(each) for each in sources]
    opened = _opened(store)
    added = _take(opened, files, n=n, seed=seed, skip_bad=skip_bad)
    print_value({"store": opened.name, "added": added}, True) if as_json else print(
        f"Next: rlhflab annotate {opened.name}")


def store_export_command(store: str, /, *, out: Path, shape: Literal["pairs", "thumbs", "judged"] = "pairs",
                         rule: Literal["adjudicated", "majority", "each"] = "adjudicated", min_judgments: Count = 1,
                         min_agreement: float = 0.5, as_json: Json = False) -> None:
    """Make training data of judgments by a rule, which a file beside it records with digests.

    Args:
        store: The store's file or its postgresql:// URL.
        out: The JSONL file.
        shape: pairs for comparisons, thumbs for single answers, judged for all of it with every judgment.
        rule: adjudicated: the adjudicator's verdict, else the majority's. majority: of more than half. each: every
            judgment is a row.
        min_judgments: Judgments that an item needs.
        min_agreement: Share of the judgments that the majority needs at least.
        as_json: Print what was written as JSON.
    """
    _need_app()
    from rlhflab.data.export import Rule, export

    done = export(_opened(store, create=False), out, shape=shape, rule=Rule(
        name=rule, min_judgments=min_judgments, min_agreement=min_agreement))
    if as_json:
        print_value({"out": str(done.path), "sidecar": str(done.sidecar), **done.record}, True)
        return
    left_out = ", ".join(f"{count} {why}" for why, count in done.record["left_out"].items())
    print(f"Wrote {done.path} ({done.rows} rows; left out: {left_out or 'nothing'}) and {done.sidecar}. Next: "
          + {"pairs": f"rlhflab train reward recipes/reward.yaml --data {done.path}",
             "thumbs": f"rlhflab train dpo recipes/dpo.yaml --loss.name kto --data {done.path}",
             "judged": f"rlhflab store import another.sqlite {done.path}"}[shape])


def store_correct_command(store: str, judgment: int, /, *, verdict: Literal[
        "a", "b", "tie", "both_bad", "skip", "good", "bad", "none"], author: str, reason: str,
        as_json: Json = False) -> None:
    """Correct somebody's judgment by a new row that names its author and the reason; the old row stays.

    Args:
        store: The store's file or its postgresql:// URL.
        judgment: Its number in the store.
        verdict: What it is to be; none takes it back, and the comparison waits for its annotator again.
        author: Who corrects.
        reason: Why.
        as_json: Print the new row's number as JSON.
    """
    _need_app()
    from rlhflab.data.judging import check_name

    opened = _opened(store, create=False)
    row = opened.correct(judgment, None if verdict == "none" else verdict, author=check_name(author), why=reason)
    print_value({"judgment": row, "corrects": judgment}, True) if as_json else print(
        f"Judgment {row} corrects {judgment}. Next: rlhflab store {opened.name}")


def _need_app() -> None:
    missing = [name for name in ("sqlalchemy", "alembic", "fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"annotation needs {', '.join(missing)}, which is not installed; run: "
                          "pip install 'mini-rlhf-lab[app]'")


def _user() -> str:
    try:
        return "".join(c for c in getpass.getuser() if c.isalnum() or c in "._-@")[:64] or "annotator"
    except (OSError, KeyError):
        return "annotator"


def _is_store(source: str) -> bool:
    return "://" in source or source.endswith(STORE_SUFFIXES)


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source}: no such file or run folder")
    return path


def _store_and_sources(store: str | None, sources: Sequence[str], adapter: Sequence[str] | None,
                       ) -> tuple[str, list[Path]]:
    """Which of the sources is the store, and the rest of them. ConfigError where it cannot be told."""
    stores = [each for each in sources if _is_store(each)] + ([store] if store else [])
    files = [_existing(each) for each in sources if not _is_store(each)]
    if len(stores) > 1:
        raise ConfigError(f"{' and '.join(stores)}: are two stores; give one")
    if not (stores or files or adapter):
        raise ConfigError("annotate: needs something to judge, such as rlhflab annotate comparisons.jsonl")
    if adapter and len(adapter) != 2:
        raise ConfigError(f"--adapter: is to be given twice, two policies are compared; found {len(adapter)}")
    if stores:
        return stores[0], files
    if not files:
        return "annotations.sqlite", []
    first = files[0]
    return str(first / "annotations.sqlite" if first.is_dir() else
               first.with_name(first.name.removesuffix(".gz").removesuffix(".jsonl") + ".sqlite")), files


def _opened(store: str, *, create: bool = True) -> "Store":
    from rlhflab.data.store import Store

    return Store.open(store, create=create)


def _take(store: "Store", files: Sequence[Path], *, n: int, seed: int, skip_bad: bool) -> list[dict[str, Any]]:
    """Append what the files hold, and say so on stderr."""
    from rlhflab.data.intake import take_file

    added = []
    for path in files:
        broken: list[DataError] = []
        if path.is_dir():
            from rlhflab.runs.to_judge import items_of_run

            drawn = items_of_run(path, n=n, seed=seed)
            items, judgments = store.add(drawn), None
        else:
            items, judgments = take_file(store, path, bad=broken.append if skip_bad else None)
        said = f", {judgments.new} judgments ({judgments.known} known)" if judgments and any(judgments) else ""
        said += f"; {len(broken)} broken rows left out, the first: {broken[0]}" if broken else ""
        print(f"{path}: {items.new} added, {items.known} known{said}", file=sys.stderr)
        added.append({"source": str(path), "new": items.new, "known": items.known,
                      "judgments": judgments.new if judgments else 0, "skipped": len(broken)})
    return added


def _writing(adapter: Sequence[str], **choices: Any) -> "Callable[[], Iterator[Sequence[Item]]]":
    """What writes answers of two adapters, once it is called in a thread."""
    def write() -> Iterator[Sequence["Item"]]:
        from rlhflab.progress import Progress
        from rlhflab.runs.to_judge import written_pairs

        return written_pairs((adapter[0], adapter[1]), progress=Progress(), **choices)

    return write


def _fed(store: "Store", write: "Callable[[], Iterator[Sequence[Item]]]") -> Callable[[], str]:
    """Start to write answers into the store; returns what says how far it is."""
    from rlhflab.app.feed import Feed

    feed = Feed(store, write)
    feed.start()
    return feed.news


def _quiet() -> str:
    return ""
