"""The release part of the demo, and of an experiment that asks for it: a registry of its own, the gate on the hacked
and the cured adapter, and the way back.

The SFT policy is the first release. Each of the two candidates is gated against it. What the gate blocks stays out:
nothing is overridden here but the gate of the first release, for which there is nothing to compare with. Each part
leaves a file and finds out what is left to do from the ledger, so that a demo that was stopped goes on.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rlhflab.analysis.gate_files import power_words, stopped_by, verdict_cells
from rlhflab.analysis.hacking import GATE_CRITERION, as_json, gate_blocks
from rlhflab.analysis.report_data import section
from rlhflab.data.formats import prompt_row, write_jsonl
from rlhflab.data.types import Prompt
from rlhflab.errors import RegistryError, RunError
from rlhflab.model.load import model_folder, weights_digest
from rlhflab.progress import Progress, columns
from rlhflab.registry.audit import verify
from rlhflab.registry.cards import says
from rlhflab.registry.records import ACTIVE, LEDGER, Adapter
from rlhflab.registry.sources import folder_digest
from rlhflab.registry.store import Registry
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.gate import gate_with
from rlhflab.runs.lab import Lab
from rlhflab.runs.registering import Said, add_adapter, check_transcripts
from rlhflab.runs.targets import Target
from rlhflab.suites.policy import ReadPolicy

DEPLOYMENT = "helpdesk"
START, HACKED, CURED = "start", "hacked", "cured"
POLICY = Path("roles") / "policy"
"""Where a run keeps it."""
ANNOTATORS = "simulated annotators of the scenario's card"
KEY = "demo-only-key.pem"
"""The private key lies beside what it signs, so its signatures prove nothing to anybody else: it is for the demo."""
FIRST = "the first release: no adapter is active that a gate could compare it with"
AGAIN = "active again after a rehearsal of the way back"
REHEARSAL = "a rehearsal of the way back"
TRANSCRIPT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An adapter that was made before, and what is known of it."""

    adapter: Path
    annotators: str | None = None
    note: str
    evaluations: Mapping[str, Any] = field(default_factory=dict)


def trained_arms(home: Path, *, start: Path, scenario: str, method: str, rates: Mapping[str, Any],
                 start_rates: Mapping[str, Any]) -> dict[str, Trained]:
    """What a release is made of: the start, and the policies of the arms hack and targeted in a seed's folder.

    `rates`: what was measured of an arm, by its name.
    """
    by = f"{ANNOTATORS} who like long and confident answers"
    return {
        START: Trained(adapter=start, note="the policy that both start from", evaluations={scenario: start_rates}),
        HACKED: Trained(adapter=home / "hack" / POLICY, annotators=by,
                        note=f"{method} on a reward learnt from biased pairs",
                        evaluations={scenario: section(rates, "hack", "rates")}),
        CURED: Trained(adapter=home / "targeted" / POLICY, annotators=f"{by}, then experts by the gold rules",
                       note=f"{method} on the biased reward after expert labels on the failures found",
                       evaluations={scenario: section(rates, "targeted", "rates")})}


def decide(hacking: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Put criterion 8 among those that were decided, by the `result` of a release."""
    decided = as_json([gate_blocks(found[HACKED]["verdict"], rollback_ok=found["rollback"]["ok"])])
    hacking["criteria"] += decided["criteria"]
    hacking["not_evaluated"] = [row for row in hacking["not_evaluated"] if row["id"] != GATE_CRITERION]


class Release:
    """From three trained adapters to one that is active, in parts."""

    def __init__(self, folder: RunFolder, load: Callable[[], Lab], trained: Mapping[str, Trained], policy: ReadPolicy,
                 prompts: list[Prompt], progress: Progress, *, by: str = "the demo") -> None:
        """`folder`: the demo's. `trained`: by name, start, hacked and cured. `prompts`: whose greedy answers are kept,
        so that a rollback can be shown to bring them back. `by`: who releases, for the ledger.
        """
        self.folder, self._load, self.trained, self.policy, self.by = folder, load, trained, policy, by
        self.prompts, self.progress = prompts, progress
        self.registry_folder = folder.path / "registry"

    def parts(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Names and work, in order; each part returns the tokens it read or wrote."""
        yield "registry", self.fill
        yield "gate hacked", partial(self.gate, HACKED)
        yield "gate cured", partial(self.gate, CURED)
        yield "promote", self.promote
        yield "rollback", self.rehearse
        yield "verify", self.verify

    @property
    def registry(self) -> Registry:
        """The demo's own."""
        return Registry(self.registry_folder, key=self.folder.path / "release" / KEY)

    @property
    def active(self) -> Path:
        """The link to the active adapter; nothing is there where the base answers alone."""
        return self.registry_folder / ACTIVE / DEPLOYMENT

    # -- parts -----------------------------------------------------------------------------------------------------

    def fill(self) -> int:
        """A registry with the three adapters, and the start as the first release."""
        key = self.folder.path / "release" / KEY
        key.parent.mkdir(exist_ok=True)
        if not (self.registry_folder / LEDGER).is_file():
            made = Registry.init(self.registry_folder, key=key, by=self.by)
            self.progress.say(f"Made the registry {self.registry_folder}, " + (
                f"signed with {key}, a key for this folder only." if made.signed else "unsigned."))
        prompts = key.with_name("transcript-prompts.jsonl")
        write_jsonl(prompts, map(prompt_row, self.prompts))
        here = {each.name for each in self.registry.state().adapters.values()}
        for name in (each for each in self.trained if each not in here):
            told = self.trained[name]
            added = add_adapter(self.registry, told.adapter, Said(
                by=self.by, name=name, annotators=told.annotators, note=told.note, evaluations=told.evaluations,
                transcripts=prompts, max_new_tokens=TRANSCRIPT_TOKENS), role=None, progress=self.progress).adapter
            self.progress.say(f"Added {name} ({added.digest[:12]}), {told.note}.")
        if DEPLOYMENT not in self.registry.state().deployments:
            self._activate(START, override=FIRST)
        return 0

    def gate(self, name: str) -> int:
        """Judge a candidate against the first release, whose answers are kept and so written once."""
        home = f"release/gate-{name}"
        self.folder.discard(home)  # begun by a process that was stopped
        start, adapter = self._adapter(START), self._adapter(name)
        lab = self._load()
        active, candidate = (Target(lab.model.base.name, self.registry.path_of(each), each.name)
                             for each in (start, adapter))
        folder = RunFolder.create(self.folder.path / home)
        record = gate_with(lab, candidate, active, self.policy, folder)
        self.progress.say("\n".join([
            f"Gate of {name} against {START}, policy {self.policy.name}:", *columns(verdict_cells(record)),
            f"Verdict on {name}: {record['verdict']}. {power_words(record)}; {record['answers_written']} answers "
            f"of {record['tokens_written']} tokens were written."]))
        return sum(row.get("tokens", 0) for row in folder.rows("answers.jsonl"))  # whether kept before or not

    def promote(self) -> int:
        """Promote the cured adapter if the gate lets it, and see that what the gate blocks is refused."""
        refusals = {name: self._refusal(name) for name in (HACKED, CURED) if self.verdict(name)["blocks"]}
        if HACKED not in refusals:
            self.progress.say(f"The gate would let {HACKED} through. It is not promoted, since the experiment before "
                              "has shown what it is.")
        if CURED not in refusals:
            self._activate(CURED)
        self.folder.write_json("release/refusals.json", refusals)
        return 0

    def rehearse(self) -> int:
        """Roll back what is released, prove that what was there before is there again, and release it again."""
        released = START if self.verdict(CURED)["blocks"] else CURED
        self._activate(released, override=AGAIN)  # done already, but in a demo that was stopped within this part
        began = time.perf_counter()
        entry = self.registry.rollback(DEPLOYMENT, by=self.by, reason=REHEARSAL,
                                       to="base" if released == START else None)
        proof = {"seconds": round(time.perf_counter() - began, 3), "from": released,
                 "to": "base" if released == START else START, "entry": entry.number, **self._proof()}
        self._activate(released, override=AGAIN)
        self.folder.write_json("release/rollback.json", proof)
        self.progress.say(
            f"Rolled {DEPLOYMENT} back from {released} to {proof['to']} in {proof['seconds']:.3f} s: digest "
            f"{'matches' if proof['digest_matches'] else 'differs'}, {proof['reproduced']} of {proof['n']} transcripts "
            f"of {START} came again, base logits with the adapter off are "
            f"{'equal in every bit' if proof['base_logits_equal'] else 'not equal'}.")
        return 0

    def verify(self) -> int:
        """Check every file, pointer, entry and signature of the registry."""
        found = verify(self.registry)
        self.folder.write_json("release/verify.json", found)
        self.progress.say(
            f"Verified the registry: {'all well' if found['ok'] else 'damaged'}, {found['checked']} files checked, "
            f"{found['ledger']['entries']} entries; it ends with {found['ledger']['hash']}.")
        return 0

    # -- what came out ---------------------------------------------------------------------------------------------

    def verdict(self, name: str) -> dict[str, Any]:
        """The gate's record of a candidate."""
        record: dict[str, Any] = self.folder.read_json(f"release/gate-{name}/gate.json")
        return record

    def result(self) -> dict[str, Any]:
        """`release` of the summary."""
        proof, found = (self.folder.read_json(f"release/{name}.json") for name in ("rollback", "verify"))
        return {HACKED: {"verdict": self.verdict(HACKED)["verdict"]},
                CURED: {"verdict": self.verdict(CURED)["verdict"], "stopped_by": stopped_by(self.verdict(CURED))},
                "rollback": {"ok": proof["ok"], "seconds": proof["seconds"]}, "verify": {"ok": found["ok"]}}

    def story(self) -> dict[str, Any]:
        """What a report shows beside it."""
        registry = self.registry
        state = registry.state()
        return {
            "gates": [{"name": name, **self.verdict(name)} for name in (HACKED, CURED)],
            "refusals": self.folder.read_json("release/refusals.json"),
            "rollback": self.folder.read_json("release/rollback.json"),
            "verify": self.folder.read_json("release/verify.json"), "deployment": DEPLOYMENT,
            "active": state.find(DEPLOYMENT).name,
            "adapters": [{"name": each.name, "digest": each.digest, "note": each.note}
                         for each in state.adapters.values()],
            "ledger": [{"number": each.number, "at": each.at, "by": each.by, "hash": each.hash,
                        "says": says(each, names=state.names),
                        "override": (each.body.get("override") or {}).get("reason")} for each in registry.entries()]}

    def closing_words(self) -> list[str]:
        """What was released, where it is, and what to do next."""
        found = self.result()
        stopped = [f"{row['suite']} {row['metric']}" for row in found[CURED]["stopped_by"]]
        cured = "passes and is active" if not stopped else f"is kept out by {', '.join(stopped)}; {START} stays active"
        return [f"Release: the gate says {found[HACKED]['verdict']} of {HACKED}; {CURED} {cured}. Rollback "
                f"{'proven' if found['rollback']['ok'] else 'NOT proven'}, registry "
                f"{'whole' if found['verify']['ok'] else 'DAMAGED'}.",
                f"The registry is {self.registry_folder}, the verdicts are in {self.folder.path}/release. "
                f"What happened: rlhflab registry log --registry {self.registry_folder}"]

    # -- around it -------------------------------------------------------------------------------------------------

    def _adapter(self, name: str) -> Adapter:
        return self.registry.state().find(name)

    def _gate_file(self, name: str) -> Path:
        return self.folder.path / f"release/gate-{name}" / "gate.json"

    def _activate(self, name: str, *, override: str | None = None) -> None:
        """Promote, unless it is active; a candidate by its verdict, the start with a recorded reason."""
        state = self.registry.state()
        if DEPLOYMENT in state.deployments and state.active(DEPLOYMENT) == state.find(name).digest:
            return
        if name == START:
            self.registry.promote(name, DEPLOYMENT, by=self.by, gate=None, override=override)
        else:
            self.registry.promote(name, DEPLOYMENT, by=self.by, gate=self._gate_file(name), override=None)
        self.progress.say(f"Promoted {name} to {DEPLOYMENT}" + (f", without a gate: {override}." if name == START
                                                                 else "."))

    def _refusal(self, name: str) -> str:
        """Why the registry does not promote a candidate. RunError where it does."""
        try:
            self.registry.promote(name, DEPLOYMENT, by=self.by, gate=self._gate_file(name), override=None)
        except RegistryError as error:
            self.progress.say(f"Refused: {error}.")
            return str(error)
        raise RunError(f"{self.registry_folder}: promoted {name}, which the gate blocks")

    def _proof(self) -> dict[str, Any]:
        """Whether what is active now is what was released before, and answers as it did."""
        start = self._adapter(START)
        assert start.base.name is not None and start.base.digest is not None
        expected, digest = (start.digest, folder_digest(self.active.resolve())) if self.active.exists() else (
            start.base.digest, weights_digest(model_folder(start.base.name)[0]))
        found = check_transcripts(self.registry, start, model=None, progress=self.progress)
        return {"expected": expected, "digest": digest, "digest_matches": digest == expected, **found,
                "ok": digest == expected and not found["failures"]}
