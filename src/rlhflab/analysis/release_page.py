"""The release of a demo as a part of its page: both verdicts, the way back and the ledger. No HTML here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlhflab.analysis.figures import short
from rlhflab.analysis.report_data import number, rows, section


class GateRow(NamedTuple):
    """One row of a gate's verdict, in words."""

    name: str
    verdict: str
    weight: str
    """Whether it keeps the candidate out, could have, or only warns."""
    active: str
    candidate: str
    reason: str

    @property
    def tone(self) -> str:
        """The colour of its verdict."""
        return {"pass": "better", "fail": "worse"}.get(self.verdict, "unclear")


class GateTable(NamedTuple):
    """What the gate said of one candidate."""

    candidate: str
    verdict: str
    says: str
    rows: list[GateRow]
    refusal: str


def release_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a release; nothing where there was none."""
    if not found:
        return {}
    refusals = section(found, "refusals")
    gates = [gate_table(gate, str(refusals.get(str(gate.get("name")), ""))) for gate in rows(found, "gates")]
    return {"headline": headline(found, gates), "gates": gates, "proof": proof(section(found, "rollback")),
            "verify": verified(section(found, "verify")), "ledger": rows(found, "ledger"),
            "adapters": rows(found, "adapters"), "deployment": str(found.get("deployment", ""))}


def gate_table(gate: Mapping[str, Any], refusal: str) -> GateTable:
    """A record of the gate as a table."""
    made = [GateRow(f"{row.get('suite')}: {row.get('metric')}".replace("_", " "), str(row.get("verdict")), weight(row),
                    shown(row.get("active")), shown(row.get("candidate")), str(row.get("reason", "")))
            for row in rows(gate, "rows")]
    could = sum(bool(row.get("blocking")) for row in rows(gate, "rows"))
    says = (f"Policy {gate.get('policy')} (sha256 {str(gate.get('policy_digest'))[:12]}), against "
            f"{gate.get('active')}, {gate.get('dtype')}. {could} of {len(made)} rows had the power to block. It took "
            f"{shown(gate.get('seconds'))} s and wrote {gate.get('answers_written')} answers of "
            f"{gate.get('tokens_written')} tokens; answers given before are kept.")
    return GateTable(str(gate.get("name")), str(gate.get("verdict")), says, made, refusal)


def weight(row: Mapping[str, Any]) -> str:
    """What a row's verdict counts for."""
    return "blocks" if row.get("blocks") else "could block" if row.get("blocking") else "warns"


def headline(found: Mapping[str, Any], gates: list[GateTable]) -> list[str]:
    """What happened, for somebody who reads no further."""
    made = []
    for gate in gates:
        stopped = [row.name for row in gate.rows if row.weight == "blocks"]
        made.append(f"The gate lets the {gate.candidate} adapter through." if not stopped else
                    f"The gate keeps the {gate.candidate} adapter out ({gate.verdict}): {', '.join(stopped)}.")
    if (proven := section(found, "rollback").get("ok")) is not None:
        made.append(f"The way back was rehearsed and {'proven' if proven else 'NOT proven'}.")
    return [*made, f"Active in {found.get('deployment')} is {found.get('active')}."]


def proof(found: Mapping[str, Any]) -> dict[str, str]:
    """The proof of a rollback, fact by fact."""
    if not found:
        return {}
    versions = "" if found.get("same_versions") else "; package versions differ from those of the transcripts"
    return {"Rolled back": f"from {found.get('from')} to {found.get('to')}, ledger entry {found.get('entry')}",
            "Time": f"{shown(found.get('seconds'))} s, no model loaded",
            "Digest of what is active then": f"{found.get('digest')}, "
            f"{'as recorded' if found.get('digest_matches') else 'NOT as recorded: ' + str(found.get('expected'))}",
            "Base logits, adapter loaded and off": "equal in every bit to those before it was loaded"
            if found.get("base_logits_equal") else "NOT equal",
            "Greedy transcripts of the first release": f"{found.get('reproduced')} of {found.get('n')} came again, "
            f"token by token{versions}"}


def verified(found: Mapping[str, Any]) -> str:
    """What the check of the whole registry found."""
    if not found:
        return ""
    ledger = section(found, "ledger")
    return (f"Verified: {'all well' if found.get('ok') else 'DAMAGED'}, {found.get('checked')} files, "
            f"{ledger.get('entries')} entries, {'signed' if ledger.get('signed') else 'unsigned'}. "
            f"The ledger ends with {ledger.get('hash')}.")


def shown(value: Any) -> str:
    """A number, or a dash where there is none."""
    found = number(value)
    return "\u2013" if found is None else short(found)
