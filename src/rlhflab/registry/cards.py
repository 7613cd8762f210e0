"""The model card of an adapter and the log of what became of it, in Markdown, from the ledger alone.

What others wrote into the ledger is text here: nothing of it is markup.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhflab.data.formats import dotted
from rlhflab.registry.records import CHANGES, WEIGHTS, Adapter, Entry
from rlhflab.registry.state import State

MARKUP = re.compile(r"([\\`*_{}\[\]<>|&~$])")
UNKNOWN = "not known"
LONGEST = 300
"""Characters of a value that are shown."""


def plain(value: object) -> str:
    """A value as one line of Markdown that shows it as it is; None as not known."""
    if value is None:
        return UNKNOWN
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return MARKUP.sub(r"\\\1", text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def model_card(adapter: Adapter, state: State, *, signed: bool) -> str:
    """What it is, what made it, how it was measured, where it is active; missing facts are said to be missing."""
    made, base = adapter.made, adapter.base
    active = [name for name, stack in state.deployments.items() if stack and stack[-1] == adapter.digest]
    parents = None if made.parents is None else [state.adapters[each].name if each in state.adapters else each
                                                 for each in made.parents]
    facts = {
        "Digest": adapter.digest, "Weights, sha256": adapter.files[WEIGHTS],
        "Adapter": f"LoRA, rank {adapter.rank}" + (f", alpha {adapter.alpha:g}" if adapter.alpha else "")
        + (", with a head beside it" if adapter.head else ""),
        "Base": base.name, "Base weights, sha256": base.digest, "Tokenizer, sha256": base.tokenizer,
        "Chat template, sha256": base.template,
        "Parents": None if parents is None else ", ".join(parents) or "none: it started from the base",
        "Code commit": made.commit, "Seeds": None if made.seeds is None else ", ".join(map(str, made.seeds)),
        "Annotators": made.annotators, "Active in": ", ".join(active) or "no deployment",
        "Note": adapter.note or "none",
        "Signed": "yes" if signed else "no: nothing proves who wrote this"}
    lines = [f"# {plain(adapter.name)}", "", *_bullets(facts), "", "## Data", "", *_data(made.data), "",
             "## Rewards", "", *_rewards(made.rewards), "", "## Run", "", *_settings(made.run), "",
             *_told(made.told), "## Evaluation", "", *_settings(made.evaluations), "",
             "## Settings", "", *_settings(made.config)]
    return "\n".join(lines) + "\n"


def change_log(adapter: Adapter, entries: Sequence[Entry]) -> str:
    """Every entry about an adapter, oldest first: who did what, why, and what the gate had said."""
    lines = [f"# Changes of {plain(adapter.name)} ({adapter.digest[:12]})", ""]
    for entry in entries:
        late = ", by a clock that had gone back" if entry.clock_went_back else ""
        lines.append(f"- **{entry.number}** {plain(entry.at)}{late}, {plain(entry.by)}: {plain(says(entry, adapter))}")
        lines += [f"  - {plain(reason)}" for reason in reasons(entry)]
    return "\n".join(lines) + "\n"


def says(entry: Entry, of: Adapter | None = None, *, names: Mapping[str, str] | None = None) -> str:
    """What happened, in words; `of` an adapter, where it is about that one. `names` of adapters by digest, if known."""
    body = entry.body
    if entry.kind == "init":
        return "a registry was made" + ("" if body.get("key") else ", unsigned")
    if entry.kind == "add":
        return f"added {body['name']} ({body['digest'][:12]})"
    digest, before = (_called(each, names) for each in (body["digest"], body["before"]))
    gave_way = of is not None and of.digest == body["before"] != body["digest"]
    if entry.kind == "promote":
        return f"in {body['deployment']}, gave way to {digest}" if gave_way else (
            f"promoted {digest} to {body['deployment']}, after {before}")
    return f"rolled {body['deployment']} back from {before} to {digest}"


def _called(digest: str | None, names: Mapping[str, str] | None) -> str:
    return "the base" if digest is None else (names or {}).get(digest, digest[:12])


def reasons(entry: Entry, *, names: Mapping[str, str] | None = None) -> Iterator[str]:
    """Why a pointer was moved: what the gate had said, who overrode it, what was written down."""
    if entry.kind not in CHANGES:
        return
    gate, override = entry.body.get("gate"), entry.body.get("override")
    if gate:
        against = gate.get("active_digest") or "the base"
        yield f"gate: {gate['verdict']} against {(names or {}).get(against, against)}, {len(gate['rows'])} rows"
    if override:
        yield f"overridden: {override['of']}; because: {override['reason']}"
    if entry.body.get("reason"):
        yield f"because: {entry.body['reason']}"


def _bullets(facts: Mapping[str, object]) -> list[str]:
    return [f"- {key}: {plain(value)}" for key, value in facts.items()]


def _data(data: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not data:
        return [UNKNOWN]
    return [f"- {plain(each['key'])}: {plain(each['name'])}, sha256 {plain(each['sha256'])}, "
            f"rows {plain(each['rows'])}, judged by {plain(each['judged_by'])}" for each in data]


def _rewards(rewards: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not rewards:
        return [UNKNOWN if rewards is None else "none"]
    return [f"- {plain(each['source'])}, adapter {plain(each['adapter'])}" for each in rewards]


def _told(told: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """A section of its own, since nobody checked it; nothing where no file of another trainer was there."""
    if not told:
        return []
    lines = ["## As told by the trainer's files, unchecked", ""]
    for each in told:
        lines += [f"- {plain(each['file'])}, sha256 {plain(each['sha256'])}",
                  *(f"  - {plain(key)}: {plain(value)}" for key, value in dotted(each["says"]))]
    return [*lines, ""]


def _settings(values: Mapping[str, Any] | None) -> list[str]:
    """Nested values as dotted keys, an interval and its count in one line."""
    return [UNKNOWN] if not values else [f"- {plain(key)}: {plain(value)}" for key, value in dotted(values)]


def differences(one: Adapter, other: Adapter) -> list[dict[str, Any]]:
    """Every recorded fact in which two adapters differ: key, and the value of each."""
    first, second = (dict(dotted(each.row())) for each in (one, other))
    return [{"key": key, "a": first.get(key), "b": second.get(key)} for key in {**first, **second}
            if first.get(key) != second.get(key)]
