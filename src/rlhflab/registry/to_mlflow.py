"""An adapter of the registry as one MLflow run: files and card, facts as parameters and tags, evaluations as metrics.

MLflow is no dependency: its own client writes to wherever it is set up to. The ledger stays what counts, and a run can
be changed by anybody, so the tags name the ledger's last hash.
"""

import math
import re
from typing import Any

from rlhflab.data.formats import dotted
from rlhflab.errors import RegistryError
from rlhflab.registry.audit import refuse_damaged
from rlhflab.registry.bundle import CARD
from rlhflab.registry.cards import model_card
from rlhflab.registry.records import Adapter
from rlhflab.registry.state import State
from rlhflab.registry.store import Registry

LONGEST = 500
"""Characters of a parameter or a tag that every MLflow server takes."""
PART = 100
"""Parameters that a server takes at one time."""
UNNAMEABLE = re.compile(r"[^\w./ -]")


def log_to_mlflow(registry: Registry, adapter: Adapter) -> str:
    """The id of the new run. RegistryError without mlflow, where a file is not what was added, or MLflow fails."""
    try:
        import mlflow  # type: ignore[import-not-found, unused-ignore]
        from mlflow.exceptions import MlflowException  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise RegistryError("--mlflow: mlflow is not installed; pip install mlflow, or leave --mlflow out") from error
    refuse_damaged(registry, adapter)
    try:
        return _log(mlflow, registry, adapter)
    except (MlflowException, ImportError, OSError) as error:  # a client without its database's driver, a server gone
        raise RegistryError(f"--mlflow: nothing or only a part was logged, MLflow says: "
                            f"{' '.join(str(error).split())}") from error


def _log(mlflow: Any, registry: Registry, adapter: Adapter) -> str:
    entries, state = registry.entries(), registry.state()
    facts = list(parameters(adapter).items())
    with mlflow.start_run(run_name=adapter.name) as run:
        mlflow.set_tags(tags(adapter, state, ledger=entries[-1].hash))
        for start in range(0, len(facts), PART):
            mlflow.log_params(dict(facts[start:start + PART]))
        if found := metrics(adapter):
            mlflow.log_metrics(found)
        mlflow.log_artifacts(str(registry.path_of(adapter)), "adapter")
        mlflow.log_text(model_card(adapter, state, signed=registry.signed), CARD)
    return str(run.info.run_id)


def tags(adapter: Adapter, state: State, *, ledger: str) -> dict[str, str]:
    """What identifies the adapter, and where it is active."""
    active = [name for name in state.deployments if state.active(name) == adapter.digest]
    known = {"digest": adapter.digest, "base": adapter.base.name, "base_digest": adapter.base.digest,
             "commit": adapter.made.commit, "active": ", ".join(active), "ledger": ledger, "note": adapter.note}
    return {f"rlhflab.{key}": value[:LONGEST] for key, value in known.items() if value}


def parameters(adapter: Adapter) -> dict[str, str]:
    """Every recorded fact that is known, but digests of files and evaluations, by its dotted key."""
    row = adapter.row()
    made = {key: value for key, value in row["made"].items() if key != "evaluations"}
    return {_name(key): str(value)[:LONGEST] for key, value in dotted({
        "rank": row["rank"], "alpha": row["alpha"], "head": row["head"], "base": row["base"], "made": made})
        if value is not None}


def metrics(adapter: Adapter) -> dict[str, float]:
    """Every finite number of the evaluations; of an estimate its mean, both ends of its interval, and its count."""
    return {_name(key): float(value) for key, value in dotted(adapter.made.evaluations or {}, estimates=False)
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)}


def _name(key: str) -> str:
    """A key with the characters that MLflow takes."""
    return UNNAMEABLE.sub("_", key)
