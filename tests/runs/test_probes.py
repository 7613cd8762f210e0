"""What every run finds out about itself, and runs that stack a new adapter on a frozen one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from conftest import TREES, moved_role
from rlhflab.cli import main
from rlhflab.config import make_run
from rlhflab.core.batch import Batch, Tree, pack
from rlhflab.errors import RunError
from rlhflab.model.load import model_folder
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.runs import sources
from rlhflab.runs.lab import Lab
from rlhflab.runs.probes import scores_by_batch
from rlhflab.runs.recipes import recipe
from rlhflab.train.checkpoint import Checkpoints

SMALL = ["--model", "tiny-llama", "--dtype", "float32", "--steps", "3", "--batch", "2", "--checkpoint_every", "2"]
PAIRS = [{"prompt": f"Say {word}.", "chosen": word, "rejected": f"No {word}, sorry."} for word in
         ("one", "two", "three", "four", "five", "six", "seven", "eight")]
OF_KIND: dict[str, list[str]] = {
    "sft": [], "dpo": ["--probe_prompts", "0"], "reward": [],
    "ppo": ["--samples", "2", "--max_new_tokens", "4", "--reward", '[{"name": "words", "most": 2}]']}


def command(kind: str, folder: Path, out: Path, *more: str) -> list[str]:
    rows = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in PAIRS] if kind == "sft" else PAIRS
    data = folder / f"{kind}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["train", kind, str(recipe(kind)), *SMALL, "--data", str(data), *OF_KIND[kind], *more, "--out", str(out)]


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def start_folder(folder: Path, *, scale: float = 1.0) -> Path:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    moved_role(model, "policy", seed=5)
    with torch.no_grad():
        for parameter in model.parameters("policy"):
            parameter.mul_(scale)
    model.save_role("policy", folder)
    return folder


@pytest.mark.parametrize("kind", list(OF_KIND))
@pytest.mark.parametrize("lora", [[], ["--lora.dora", "true", "--lora.rslora", "true", "--lora.last_layers", "1"]])
def test_every_run_measures_itself(kind: str, lora: list[str], tmp_path: Path) -> None:
    assert main(command(kind, tmp_path, tmp_path / "run", *lora)) == 0
    summary = summary_of(tmp_path / "run")
    probes = summary["probes"]
    roles = {"reward": {"reward"}, "ppo": {"policy", "value"}}.get(kind, {"policy"})
    assert probes["reread"] == dict.fromkeys(roles, 0.0)
    assert probes["first_change"] > 0
    assert ("start_kl" in probes) == (kind in ("dpo", "ppo")) and probes.get("start_kl", 0.0) == 0.0
    assert ("batch_gap_max" in probes) == (kind == "reward") and 0 <= probes.get("batch_gap_max", 0.0) < 1e-4
    assert summary.get("end_token_share") == (1.0 if kind in ("sft", "dpo") else None)


def test_a_model_that_will_not_learn_to_stop_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sources.conversation_tree

    def without_end(*arguments: Any) -> Tree:
        tree = whole(*arguments)
        scored = (*(tree.answers[0].scored or ())[:-1], False)
        return Tree(prompt=tree.prompt, answers=(type(tree.answers[0])(ids=tree.answers[0].ids, scored=scored),))

    monkeypatch.setattr(sources, "conversation_tree", without_end)
    assert main(command("sft", tmp_path, tmp_path / "run")) == 0
    assert "no answer of the data ends with a trained <|im_end|>" in capsys.readouterr().err
    assert summary_of(tmp_path / "run")["end_token_share"] == 0


def test_a_role_that_reads_otherwise_when_loaded_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = SharedModel.adapter
    monkeypatch.setattr(SharedModel, "adapter", lambda self, role: {
        key: tensor.bfloat16().float() for key, tensor in adapter(self, role).items()})  # saved in too few bits
    assert main(command("sft", tmp_path, tmp_path / "run")) == 2
    assert "roles/policy: loaded again, this role reads the same answers otherwise" in capsys.readouterr().err


@pytest.mark.parametrize("kind", list(OF_KIND))
def test_a_stacked_run_is_saved_as_one_adapter_that_plain_peft_loads(kind: str, tmp_path: Path) -> None:
    start, run = start_folder(tmp_path / "start"), tmp_path / "run"
    assert main(command(kind, tmp_path, run, "--start", str(start), "--stack", "true", "--lora.rslora", "true",
                        "--lora.rank", "3")) == 0
    probes = summary_of(run)["probes"]
    assert probes.get("start_kl", 0.0) == 0.0 and all(gap < 1e-4 for gap in probes["reread"].values())
    for path in (run / "roles").iterdir():
        config = json.loads((path / "adapter_config.json").read_text())
        # 4 ranks of the start and 3 of its own, their scales folded in
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (7, 7, False)
    if kind in ("sft", "dpo", "ppo"):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        model.load_role("policy", run / "roles" / "policy")
        model.load_role("start", start)
        ours, before = (model.logprobs(pack(TREES), role).logprob for role in ("policy", "start"))
        assert (ours - before).abs().max() > 1e-4, "it has learnt something on top"
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(
            model_folder("tiny-llama")[0], dtype=torch.float32), run / "roles" / "policy")
        ids = torch.tensor([[1, 50, 60]])
        with torch.no_grad(), model.playing("policy"):
            logits = torch.nn.functional.linear(model.decoder(input_ids=ids).last_hidden_state, model.unembedding)
            torch.testing.assert_close(plain(input_ids=ids).logits, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "flags", "last"), [
    ("dpo", [], 2), *((kind, ["--lora.last_layers", "1", "--epochs", "3", "--steps", "9", "--micro_tokens", "100"], 6)
                      for kind in ("sft", "dpo", "reward"))])
def test_a_stacked_run_that_was_stopped_goes_on_to_the_same_bits(
        kind: str, flags: list[str], last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the last block alone, in a later epoch: the trunks that were kept are those of the first epoch's batches."""
    start, whole, stopped = start_folder(tmp_path / "start"), tmp_path / "whole", tmp_path / "stopped"
    more = ["--start", str(start), "--stack", "true", *flags]
    assert main(command(kind, tmp_path, whole, *more)) == 0
    keep = Checkpoints.keep

    def stopping(self: Checkpoints, number: int, *rest: Any) -> None:
        keep(self, number, *rest)
        if number == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "keep", stopping)
        assert main(command(kind, tmp_path, stopped, *more)) == 130
    assert main(["train", "--resume", str(stopped)]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        role = "reward" if kind == "reward" else "policy"
        assert (whole / "roles" / role / name).read_bytes() == (stopped / "roles" / role / name).read_bytes()
    assert summary_of(whole) == summary_of(stopped)


def test_in_bf16_what_a_stack_is_saved_as_is_held_to_the_bit_and_its_rounding_is_only_reported(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    start = ["--dtype", "bfloat16", "--stack", "true", "--start", str(start_folder(tmp_path / "start", scale=3.0))]
    assert main(command("sft", tmp_path, tmp_path / "run", *start)) == 0
    assert summary_of(tmp_path / "run")["probes"]["reread"]["policy"] > 0.1
    adapter = SharedModel.adapter
    monkeypatch.setattr(SharedModel, "adapter", lambda self, role: {
        key: tensor + 0.01 * ("as-one" in role) for key, tensor in adapter(self, role).items()})  # not saved as it is
    assert main(command("sft", tmp_path, tmp_path / "wrong", *start)) == 2
    assert "roles/policy: loaded again, this role reads the same answers otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--stack", "true", "--start", "x", "--lora.dora", "true"], "stack: true and lora.dora: true exclude each other"),
    (["--lora.last_layers", "1", "--lora.targets", "q.*"], "last_layers needs targets as a list of names"),
    (["--lora.last_layers", "3"], "lora.last_layers: 3 blocks are asked for, and tiny-llama has 2"),
    (["--lora.targets", "[nothing]"], "lora: tiny-llama cannot be adapted so"),
    (["--quantize", "nf4", "--device", "cpu"], "quantize: nf4 needs a CUDA GPU"),
])
def test_what_an_adapter_cannot_be_is_one_sentence(flags: list[str], sentence: str, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("sft", tmp_path, tmp_path / "run", *flags)) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_the_reference_of_a_stacked_run_is_its_start(tmp_path: Path) -> None:
    start = start_folder(tmp_path / "start")
    lab = Lab.load("tiny-llama", dtype="float32", device="cpu", progress=Progress())
    run = make_run("dpo", {"model": "tiny-llama", "start": str(start), "stack": True, "lora": {"rank": 2}})
    lab.start_role("policy", run)
    reference = lab.freeze_reference(run)
    lab.model.load_role("alone", start)
    read = [torch.cat(tree_logprobs(lab.model, TREES, role=role, micro_tokens=512))
            for role in ("policy", reference, "alone")]
    assert torch.equal(read[0], read[2]) and torch.equal(read[1], read[2])
    lab.drop_roles()
    assert not lab.model.records


@pytest.mark.parametrize("stds", [(2.0, 6.0), ()])
def test_rounding_is_held_against_the_spread_of_an_ensembles_own_members(
        stds: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab.load("tiny-llama", dtype="bfloat16", device="cpu", progress=Progress())
    moved_role(lab.model, "reward")
    lab.model.set_head("reward", torch.randn(2, lab.model.width, generator=torch.Generator().manual_seed(0)))
    lab.model.records["reward"] = replace(lab.model.records["reward"], score_std=0.5, member_stds=stds)
    read = lab.model.outputs
    wrong = torch.tensor([0.0, 0.12])  # of one member alone; each answer's score moves from batch to batch

    def unsteady(batch: Batch, role: str) -> torch.Tensor:
        return read(batch, role).detach() * 0 + (len(batch.tokens) > 1) * wrong

    monkeypatch.setattr(lab.model, "outputs", unsteady)
    if stds:  # in the mean .06, where the limit is .1 x 4
        assert scores_by_batch(lab, TREES, role="reward")["batch_gap_mean"] == pytest.approx(0.06)
    else:  # .1 x .5
        with pytest.raises(RunError, match=r"batch_gap_mean 0\.06, limit 0\.05"):
            scores_by_batch(lab, TREES, role="reward")
