"""What MLflow is told of an adapter. A stand-in takes it down where mlflow itself is not installed."""

import importlib.util
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry_folders import adapter_folder, promote
from rlhflab.cli import main
from rlhflab.errors import RegistryError
from rlhflab.progress import Progress
from rlhflab.registry.store import Registry
from rlhflab.registry.to_mlflow import log_to_mlflow, metrics, parameters


class StandIn:
    """The five calls of mlflow's that are made, taken down."""

    def __init__(self):
        self.params, self.metrics, self.tags, self.files, self.texts = {}, {}, {}, [], {}
        self.set_tags, self.log_params, self.log_metrics = self.tags.update, self.params.update, self.metrics.update

    @contextmanager
    def start_run(self, run_name):
        self.name = run_name
        yield SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_artifacts(self, folder, place):
        self.files += [f"{place}/{path.name}" for path in Path(folder).iterdir()]

    def log_text(self, text, name):
        self.texts[name] = text


@pytest.fixture
def stand_in(monkeypatch):
    """In mlflow's place."""
    made = StandIn()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", SimpleNamespace(MlflowException=KeyError))
    return made


@pytest.fixture
def place(tmp_path):
    """A registry with the adapter `mine` of a run that was measured."""
    from rlhflab.runs.registering import Said, add_adapter

    run = tmp_path / "run"
    adapter_folder(run / "roles/policy")
    (run / "config.yaml").write_text("{kind: dpo, seed: 3, loss: {name: dpo, beta: 0.1}}")
    (run / "record.json").write_text(json.dumps({"kind": "dpo", "commit": "abc", "status": "finished"}))
    (run / "summary.json").write_text(json.dumps({
        "accuracy": {"mean": 0.75, "low": 0.5, "high": None, "n": 8}, "pairs (all)": 2, "name": "x", "good": True}))
    registry = Registry.init(tmp_path / "registry", key=tmp_path / "key.pem")
    add_adapter(registry, run, Said(by="anna", name="mine"), role=None, progress=Progress())
    promote(registry, "mine")
    return registry


def test_files_facts_and_evaluations_go_into_one_run(place, stand_in):
    mine, made = place.state().find("mine"), stand_in
    assert log_to_mlflow(place, mine) == "r1" and made.name == "mine"
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= set(made.files)
    assert "# mine" in made.texts["MODEL_CARD.md"]
    assert made.tags == {"rlhflab.digest": mine.digest, "rlhflab.base": "a-base", "rlhflab.commit": "abc",
                         "rlhflab.active": "prod", "rlhflab.ledger": place.entries()[-1].hash}
    assert {key: made.params[key] for key in ("rank", "made.config.loss.beta", "made.run.status")} == {
        "rank": "4", "made.config.loss.beta": "0.1", "made.run.status": "finished"}
    assert not [key for key in made.params if "evaluations" in key or made.params[key] == "None"]
    assert made.metrics == {"accuracy.mean": 0.75, "accuracy.low": 0.5, "accuracy.n": 8.0, "pairs _all_": 2.0}


def test_the_command_prints_the_run(place, stand_in, capsys):
    assert main(["registry", "export", "mine", "--mlflow", "--registry", str(place.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"mlflow_run": "r1"}


def test_what_mlflow_refuses_is_one_sentence(place, stand_in, monkeypatch):
    def refuse(tags):
        raise KeyError("no\n such server")

    monkeypatch.setattr(stand_in, "set_tags", refuse)
    with pytest.raises(RegistryError, match="--mlflow: nothing or only a part was logged, MLflow says: 'no"):
        log_to_mlflow(place, place.state().find("mine"))


def test_a_damaged_adapter_is_not_logged(place, stand_in):
    mine = place.state().find("mine")
    (place.path_of(mine) / "adapter_config.json").write_text("{}")
    with pytest.raises(RegistryError, match="is damaged"):
        log_to_mlflow(place, mine)
    assert not stand_in.tags and not stand_in.files


def test_without_mlflow_it_is_one_sentence(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RegistryError, match="--mlflow: mlflow is not installed; pip install mlflow"):
        log_to_mlflow(place, place.state().find("mine"))


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow: pip install mlflow")
def test_mlflow_itself_holds_the_same(place, tmp_path):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mine = place.state().find("mine")
    experiment = mlflow.create_experiment("adapters", artifact_location=str(tmp_path / "artifacts"))
    mlflow.set_experiment(experiment_id=experiment)
    run = mlflow.get_run(log_to_mlflow(place, mine))
    assert run.data.metrics == metrics(mine) and run.data.params == parameters(mine)
    assert run.info.status == "FINISHED" and run.data.tags["rlhflab.digest"] == mine.digest
    kept = tmp_path / "artifacts" / run.info.run_id / "artifacts"
    for name in mine.files:
        assert (kept / "adapter" / name).read_bytes() == (place.path_of(mine) / name).read_bytes()
    assert "# mine" in (kept / "MODEL_CARD.md").read_text()
