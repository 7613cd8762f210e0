"""Commands for the registry of adapters: registry init, add, list, show, diff, promote, rollback, verify, log, export,
index.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rlhflab.commands.shared import Count, Folder, Json, print_table, print_value, quietly, registry_folder
from rlhflab.errors import ConfigError

if TYPE_CHECKING:
    from rlhflab.registry.records import Entry
    from rlhflab.registry.store import Registry

Key = Annotated[Path | None, Parameter(name="--key")]
DAMAGED = 2
"""Exit code of `registry verify` where something is not as it was."""


def init_command(*, registry: Folder = None, key: Key = None, unsigned: bool = False, by: str | None = None,
                 as_json: Json = False) -> None:
    """Make a registry, and the key that signs it where there is none.

    The private key is readable by you alone and lies outside of the registry. Adding to a folder that is no registry
    makes one as well.

    Args:
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        key: File of the private key; $RLHFLAB_REGISTRY_KEY, or ~/.config/rlhflab/registry-key.pem, where absent.
        unsigned: Sign nothing: damage is still seen, but nothing proves who wrote it.
        by: Your name.
        as_json: Print where it is as JSON.
    """
    made = _made(registry_folder(registry), key, signed=False if unsigned else None, by=by)
    if as_json:
        print_value({"registry": str(made.folder), "signed": made.signed}, True)
    else:
        print("Next: rlhflab registry add ADAPTER --by NAME")


def add_command(adapter: Path, /, *, by: str, name: str | None = None, role: str | None = None,
                model: str | None = None, parent: list[str] | None = None, data: list[Path] | None = None,
                annotators: str | None = None, note: str | None = None, transcripts: Path | None = None,
                max_new_tokens: Count = 32, registry: Folder = None, key: Key = None, as_json: Json = False) -> None:
    """Take a LoRA adapter in PEFT's format into the registry, wherever it was trained.

    What made it is read from the run folder around it; of an adapter from elsewhere it is what you say, and
    not known for the rest.

    Args:
        adapter: An adapter folder, such as runs/my-dpo/roles/policy, or a run folder.
        by: Your name.
        name: What to call it; made from its digest where absent.
        role: Which role of a run folder.
        model: The base, whose weights, tokenizer and template are hashed; the one the adapter names, where it is here.
        parent: Adapters of the registry it was trained from; repeat for more.
        data: Files it was trained on, instead of those of the run; repeat for more.
        annotators: The rule by which the annotators judged.
        note: Anything else worth keeping.
        transcripts: JSONL of prompts; its greedy answers are kept, for registry verify --transcripts. Loads the base.
        max_new_tokens: Longest such answer, tokens.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        key: File of the private key.
        as_json: Print the record as JSON.
    """
    from rlhflab.progress import Progress
    from rlhflab.registry.records import LEDGER, checked_name
    from rlhflab.registry.sources import look_at
    from rlhflab.runs.registering import Said, add_adapter

    folder = registry_folder(registry)
    look_at(adapter, role=role)  # before a registry is made for it
    if name is not None:
        checked_name(name, flag="--name")
    place = _open(folder, key) if (folder / LEDGER).exists() else _made(folder, key, signed=None, by=by)
    said = Said(by=by, name=name, model=model, parents=tuple(parent or ()), data=tuple(data or ()), note=note,
                annotators=annotators, transcripts=transcripts, max_new_tokens=max_new_tokens)
    added = quietly(lambda: add_adapter(place, adapter, said, role=role, progress=Progress()))
    if added.signed and added.unsigned_folder:
        print(f"The adapter's folder has no OpenSSF signature: {added.unsigned_folder}", file=sys.stderr)
    record = added.adapter
    if as_json:
        print_value({**record.row(), "signed": added.signed, "folder_signature": added.unsigned_folder is None}, True)
        return
    base = f"{record.base.name or 'an unknown base'} ({(record.base.digest or 'digest not known')[:16]})"
    print(f"Added {record.name} ({record.digest[:12]}): rank {record.rank} on {base}, {len(record.files)} files, "
          f"{'signed' if added.signed else 'unsigned'}. Next: rlhflab registry promote {record.name} --to DEPLOYMENT "
          "--gate verdict.json --by NAME")


def list_command(*, registry: Folder = None, as_json: Json = False) -> None:
    """Show the adapters, and where each is active.

    Args:
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print them as JSON.
    """
    state = _open(registry_folder(registry)).state()
    active = {digest: [name for name in state.deployments if state.active(name) == digest] for digest in state.adapters}
    print_table([{"name": each.name, "digest": each.digest if as_json else each.digest[:12], "base": each.base.name,
                  "rank": each.rank, "head": each.head,
                  "active": active[each.digest] if as_json else ", ".join(active[each.digest]) or None}
                 for each in state.adapters.values()], as_json)


def show_command(name: str, /, *, card: bool = False, registry: Folder = None, as_json: Json = False) -> None:
    """Show all that is known of an adapter.

    Args:
        name: An adapter's name, the start of its digest, or a deployment.
        card: Print its model card, Markdown, instead.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the record as JSON.
    """
    from rlhflab.registry.cards import model_card

    place = _open(registry_folder(registry))
    state = place.state()
    adapter = state.find(name)
    if card:
        if as_json:
            raise ConfigError("--card and --json: give one of them")
        print(model_card(adapter, state, signed=place.signed), end="")
        return
    active = [each for each in state.deployments if state.active(each) == adapter.digest]
    print_value({**adapter.row(), "folder": str(place.path_of(adapter)), "active": active}, as_json)


def diff_command(one: str, other: str, /, *, registry: Folder = None, as_json: Json = False) -> None:
    """Show every recorded fact in which two adapters differ.

    Args:
        one: A name, the start of a digest, or a deployment.
        other: The same of the other.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the facts as JSON.
    """
    from rlhflab.registry.cards import differences

    state = _open(registry_folder(registry)).state()
    rows = differences(state.find(one), state.find(other))
    if not rows and not as_json:
        print("No difference: both are one adapter.")
        return
    print_table(rows, as_json)


def promote_command(name: str, /, *, to: str, by: str, gate: Path | None = None, override: str | None = None,
                    registry: Folder = None, key: Key = None, as_json: Json = False) -> None:
    """Make an adapter the active one of a deployment, if a gate let it pass.

    A server reads registry/active/DEPLOYMENT, which always leads to one whole adapter folder.

    Args:
        name: An adapter's name or the start of its digest.
        to: The deployment, which is made where it is new.
        by: Your name.
        gate: Verdict of a gate, JSON; it must say pass, of this adapter, against the one that is active.
        override: Why it is promoted although no gate let it pass; recorded.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        key: File of the private key.
        as_json: Print the entry as JSON.
    """
    place = _open(registry_folder(registry), key)
    entry = place.promote(name, to, by=by, gate=gate, override=override)
    _print_change(place, entry, as_json, f"rlhflab registry rollback {to} --by NAME goes back")


def rollback_command(deployment: str, /, *, by: str, reason: str | None = None, to: str | None = None,
                     registry: Folder = None, key: Key = None, as_json: Json = False) -> None:
    """Go back to the adapter that was active before. Loads no model.

    Args:
        deployment: Its name.
        by: Your name.
        reason: Why; recorded.
        to: An adapter that was active earlier, or base for no adapter at all.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        key: File of the private key.
        as_json: Print the entry as JSON.
    """
    place = _open(registry_folder(registry), key)
    entry = place.rollback(deployment, by=by, reason=reason, to=to)
    _print_change(place, entry, as_json, f"rlhflab registry verify {deployment}")


def verify_command(name: str | None = None, /, *, transcripts: bool = False, model: str | None = None,
                   bundle: Path | None = None, public_key: Path | None = None, ends_with: str | None = None,
                   registry: Folder = None, as_json: Json = False) -> int:
    """Check that every file is what the ledger says, and that the ledger is whole. Exit code 2 where not.

    Args:
        name: An adapter, or a deployment; everything where absent.
        transcripts: Load the base too: the adapter answers as it did when it was added, and with it off the base's
            logits are equal in every bit.
        model: The base for --transcripts, where it is not found by the name that the adapter has for it.
        bundle: A folder or tar file that registry export wrote, instead of a registry.
        public_key: The key as you know it from elsewhere; the registry's own where absent.
        ends_with: A ledger hash you wrote down earlier, which the ledger must hold, so that an older
            ledger put back in its place is seen.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the result as JSON.
    """
    from contextlib import nullcontext

    from rlhflab.registry.audit import verify
    from rlhflab.registry.bundle import unpacked

    if transcripts and name is None:
        raise ConfigError("--transcripts: name the adapter or deployment to load")
    if bundle is not None and registry is not None:
        raise ConfigError("--bundle and --registry: give one of them")
    with nullcontext(registry_folder(registry)) if bundle is None else unpacked(bundle) as folder:
        place = _open(folder)
        found = verify(place, name, key=public_key, ends_with=ends_with)
        if transcripts and found["ok"]:
            assert name is not None
            found["transcripts"] = _transcripts(place, name, model)
            found["failures"] += found["transcripts"].pop("failures")
            found["ok"] = not found["failures"]
    print_value(found, True) if as_json else _print_found(found)
    return 0 if found["ok"] else DAMAGED


def log_command(name: str | None = None, /, *, markdown: bool = False, registry: Folder = None,
                as_json: Json = False) -> None:
    """Show what happened, oldest first.

    Args:
        name: An adapter; everything where absent.
        markdown: Print the adapter's log of changes, with gates and reasons, as Markdown.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print the entries as JSON.
    """
    from rlhflab.registry.cards import change_log, says
    from rlhflab.registry.state import history, state_of

    entries = _open(registry_folder(registry)).entries()
    state = state_of(entries)
    adapter = state.find(name) if name is not None else None
    if markdown:
        if adapter is None or as_json:
            raise ConfigError("--markdown: needs the name of an adapter, and goes without --json")
        print(change_log(adapter, history(entries, adapter)), end="")
        return
    shown = history(entries, adapter) if adapter else entries
    if as_json:
        print_value([{**each.said, "hash": each.hash, "signature": each.signature} for each in shown], True)
        return
    print_table([{"entry": each.number, "at": each.at + (" (clock went back)" if each.clock_went_back else ""),
                  "by": each.by, "what": says(each, adapter, names=state.names)} for each in shown], False)


def export_command(name: str, /, *, out: Path | None = None, mlflow: bool = False, registry: Folder = None,
                   as_json: Json = False) -> None:
    """Write an adapter and all that proves it as one bundle, which others check without this registry.

    Args:
        name: An adapter's name, the start of its digest, or a deployment.
        out: The new folder, or a file that ends in .tar.
        mlflow: Log it as an MLflow run, where mlflow is installed: its files and card as artifacts, recorded facts as
            parameters and tags, evaluations as metrics.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print where it is as JSON.
    """
    from rlhflab.registry.bundle import HOW, export
    from rlhflab.registry.to_mlflow import log_to_mlflow

    place = _open(registry_folder(registry))
    adapter = place.state().find(name)
    if (out is None) != mlflow:
        raise ConfigError("registry export: give --out, or --mlflow")
    if out is None:
        run = quietly(lambda: log_to_mlflow(place, adapter))
        print_value({"mlflow_run": run}, as_json)
        return
    path = export(place, adapter, out)
    print_value({"bundle": str(path), "digest": adapter.digest}, True) if as_json else print(
        f"Wrote {path} ({adapter.name}, {adapter.digest[:12]}). Next: hand it over; {HOW} in it says how to check it, "
        f"here rlhflab registry verify --bundle {path}")


def index_command(*, url: str | None = None, registry: Folder = None, as_json: Json = False) -> None:
    """Write the ledger into SQL tables, for questions of your own. The ledger stays what counts.

    Args:
        url: Of a database, as SQLAlchemy writes it; SQLite in the registry where absent.
        registry: Its folder; $RLHFLAB_REGISTRY, or registry here, where absent.
        as_json: Print where it is as JSON.
    """
    from rlhflab.registry.index import refresh

    done = refresh(_open(registry_folder(registry)), url)
    print_value(done, True) if as_json else print(
        f"{'Wrote' if done['rebuilt'] else 'Up to date:'} {done['url']} ({done['entries']} entries). Next: ask its "
        "tables adapters, entries and deployments")


def _open(folder: Path, key: Path | None = None) -> "Registry":
    from rlhflab.registry.store import Registry

    return Registry(folder, key=key)


def _made(folder: Path, key: Path | None, *, signed: bool | None, by: str | None) -> "Registry":
    """A new registry, and words about its key on stderr."""
    from rlhflab.registry.sign import INSTALL, default_key
    from rlhflab.registry.store import Registry

    made = Registry.init(folder, key=key, signed=signed, by=by)
    print(f"Made the registry {folder}, signed with {key or default_key()}: keep that key, and its public half "
          f"{folder / 'key.pub'} where others find it." if made.signed else
          f"Made the registry {folder}, unsigned: damage is seen, but nothing proves who wrote it"
          f"{'' if signed is False else f' (for signatures: {INSTALL})'}.", file=sys.stderr)
    return made


def _transcripts(place: "Registry", name: str, model: str | None) -> dict[str, Any]:
    from rlhflab.progress import Progress
    from rlhflab.runs.registering import check_transcripts

    adapter = place.state().find(name)
    return quietly(lambda: check_transcripts(place, adapter, model=model, progress=Progress()))


def _print_change(place: "Registry", entry: "Entry", as_json: bool, next_step: str) -> None:
    from rlhflab.registry.cards import says

    if as_json:
        print_value({**entry.said, "hash": entry.hash}, True)
        return
    words = says(entry, names=place.state().names)
    unsigned = "" if entry.signature else " The registry is unsigned."
    print(f"{words[0].upper()}{words[1:]} (entry {entry.number}).{unsigned} Next: {next_step}")


def _print_found(found: dict[str, Any]) -> None:
    ledger = found["ledger"]
    proof = {True: "signed", False: "unsigned, so nothing proves who wrote them", None: "of a key that cannot be read"}
    for each in found["failures"]:
        print(f"{each['path']}: expected {each['expected'] or 'nothing'}, found {each['found'] or 'nothing'}")
    if (said := found.get("transcripts")) is not None:
        print(f"{said['reproduced']} of {said['n']} transcripts came again; base logits with the adapter off are "
              f"{'equal in every bit' if said['base_logits_equal'] else 'not equal'}"
              f"{'' if said['same_versions'] else '; package versions differ from those of the transcripts'}.")
    if ledger["unfinished"]:
        print("A write was interrupted; the next command that writes finishes it.")
    print(f"{'All well' if found['ok'] else 'Damaged'}: {found['checked']} files checked, {len(found['failures'])} "
          f"failures, {ledger['entries']} entries, "
          f"{proof[ledger['signed']]}. It ends with {ledger['hash']}")
