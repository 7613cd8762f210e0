"""The gate from the command line, end to end on a tiny model with two adapters."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from rlhflab.cli import main
from rlhflab.config import Lora
from rlhflab.model.shared import RECORD, SharedModel

SUITE = """
name: mine
prompts: prompts.jsonl
answers: {max_new_tokens: 6}
metrics:
  empty: {check: {name: regex, pattern: "^$"}, better: lower}
  words: {check: length, better: lower}
"""
POLICY = """
rows:
  - {suite: mine, metric: empty, margin: 0.2, discordance: 0.1}
  - {suite: mine, metric: words, margin: 9, blocking: false}
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite, a policy and two adapters: `mute` ends every answer at once, `calm` is the base."""
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    for name in ("calm", "mute"):
        model.add_role(name, Lora(rank=2, alpha=4), seed=1)
    chosen = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        towards = model.unembedding[chosen] / model.unembedding[chosen].norm()
        for key, value in model._peft.named_parameters():  # type: ignore[union-attr]
            if "mute" in key and "layers.1.mlp.down_proj" in key:
                value.copy_(torch.ones_like(value) if "lora_A" in key else 40 * towards[:, None].expand_as(value))
    for name in ("calm", "mute"):
        model.save_role(name, tmp_path / name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.yaml").write_text(SUITE)
    (tmp_path / "mine" / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {i}.", "id": "p{i}"}}\n' for i in range(60)))
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path


def gate(*arguments: str) -> int:
    return main(["gate", *arguments, "--policy", "policy.yaml", "--json"])


def test_the_active_model_passes_against_itself(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate("calm", "--against", "calm", "--out", "out") == 0
    record = json.loads(capsys.readouterr().out)
    print(json.dumps(record, indent=1))


def test_a(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "mute", "--against", "calm", "--policy", "policy.yaml", "--out", "out"]) in (0,2)
    print(capsys.readouterr())
    print((shop/"out"/"gate.md").read_text(), (shop/"out"/"junit.xml").read_text(), (shop/"out"/"answers.jsonl").read_text()[-400:])
