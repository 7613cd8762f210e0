"""An adapter's record as an in-toto Statement v1 with SLSA provenance, which other tools read.

https://github.com/in-toto/attestation/tree/main/spec/v1 and https://slsa.dev/spec/v1.0/provenance. Nothing is signed
here.
"""

from typing import Any

from rlhflab.registry.records import Adapter
from rlhflab.registry.sign import STATEMENT_TYPE

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:mini-rlhf-lab:adapter:v1"


def statement_of(adapter: Adapter) -> dict[str, Any]:
    """What was made, of what, and how. Digests that nobody knows are left out, as the format asks."""
    made, base = adapter.made, adapter.base
    known = [{"name": f"base:{base.name}", "digest": {"sha256": base.digest}}] if base.digest else []
    known += [{"name": f"data:{each['name']}", "digest": {"sha256": each["sha256"]}}
              for each in made.data or () if each["sha256"]]
    known += [{"name": "parent", "digest": {"sha256": parent}} for parent in made.parents or ()]
    run = made.run or {}
    builder = f"urn:mini-rlhf-lab:{run.get('lab')}" if made.run else "urn:mini-rlhf-lab:trained-elsewhere"
    times = {"invocationId": made.commit, "startedOn": run.get("started"), "finishedOn": run.get("ended")}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(adapter.files.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {"buildType": BUILD, "externalParameters": {
                "config": made.config, "annotators": made.annotators, "rewards": made.rewards, "seeds": made.seeds},
                "internalParameters": {"adapter": adapter.digest, "name": adapter.name, "rank": adapter.rank,
                                       "base": base.name, "tokenizer": base.tokenizer, "template": base.template},
                "resolvedDependencies": known},
            "runDetails": {"builder": {"id": builder, "version": run.get("versions") or {}},
                           "metadata": {key: value for key, value in times.items() if value is not None}}}}
