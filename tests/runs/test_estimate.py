"""Rehearsals on shallow models tell what the whole model takes, and micro-batches are chosen by it."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from yaml import safe_load

from rlhflab.cli import main
from rlhflab.config import Lora, Run, make_run
from rlhflab.core.batch import PreferenceTree, TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.errors import ConfigError
from rlhflab.model.load import random_base
from rlhflab.model.shared import SharedModel
from rlhflab.model.tiny import SIZES, byte_tokenizer
from rlhflab.progress import Progress
from rlhflab.runs.estimate import RESIDENT, Work, fitted
from rlhflab.runs.lab import Lab
from rlhflab.runs.recipes import recipe
from rlhflab.runs.rehearsal import LiveBytes, Rehearsal, peak_bytes, step_seconds

CHAT = ChatFormat(byte_tokenizer())
PAIRS = [PreferenceTree(tree=Tree(prompt=tuple(range(10, 20 + 5 * (i % 3))), answers=(
    TokenAnswer(ids=(100, 101, 102, 2)), TokenAnswer(ids=(120, 121, 2)))), chosen=(0,), rejected=(1,), strength=(1.0,))
    for i in range(8)]
LENGTHS = [len(pair.tree) for pair in PAIRS]
WORK = Work(items=PAIRS, lengths=LENGTHS, steps=[[0, 1, 2, 3], [4, 5, 6, 7]], again=2)
CPU = torch.device("cpu")


def rehearsal(blocks: int, **settings: object) -> Rehearsal:
    run = make_run("dpo", {"dtype": "float32", "batch": 4, "lora": {"rank": 4}, **settings})
    return Rehearsal(run=run, config=LlamaConfig(**{**SIZES, "num_hidden_layers": blocks}), chat=CHAT, device="cpu")


def whole(run: Run, blocks: int) -> Lab:
    base = random_base(LlamaConfig(**{**SIZES, "num_hidden_layers": blocks}), byte_tokenizer(), dtype=torch.float32)
    return Lab(model=SharedModel(base), chat=CHAT, progress=Progress())


def test_live_bytes_are_those_of_new_tensors_while_they_live() -> None:
    outside = torch.ones(1000)
    with LiveBytes(CPU) as live:
        outside.view(10, 100).t()
        assert live.now == 0, "a view of what was there before is not new"
        doubled = outside * 2
        part = doubled[:10]
        assert live.now == 4000
        doubled.add_(1)
        del doubled
        assert live.now == 4000, "a part keeps the whole alive"
        del part
        assert live.now == 0 and live.peak == 4000
        leaf = torch.zeros(500, requires_grad=True)
        (leaf.exp() * 3).sum().backward()
        assert live.now == 4000, "the leaf and its gradient are left"


@pytest.mark.parametrize(("last", "adapted"), [(None, 30), (10, 10), (1, 1)])
def test_full_depth_is_a_sum_over_plain_and_adapted_blocks(last: int | None, adapted: int) -> None:
    def count(lab: Lab, run: Run) -> list[float]:
        layers = lab.model.base.model.config.num_hidden_layers
        assert layers <= 4 and len(lab.model.decoder.layers) == layers
        ours = run.lora.last_layers or layers
        return [7 + ours, 3 * (layers - ours)]

    found = rehearsal(30, lora={"last_layers": last}).at_full_depth(count)
    assert found.tolist() == [7 + adapted, 3 * (30 - adapted)]


@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"lora": {"rank": 4, "last_layers": 2}},
                                      {"reference_ema": {"mix": 0.5}}])
def test_shallow_models_tell_the_peak_of_the_whole_one(settings: dict[str, object]) -> None:
    rehearsed = rehearsal(7, **settings)
    lab = whole(rehearsed.run, 7)
    lab.model.recompute_activations(rehearsed.run.recompute)
    expected = peak_bytes(lab, rehearsed.run, PAIRS)
    found = rehearsed.at_full_depth(lambda lab, run: [peak_bytes(lab, run, PAIRS)])[0]
    assert found == pytest.approx(expected, rel=0.02)
    assert lab.model.records == {}, "a rehearsal leaves no role behind"


def test_a_later_epoch_is_timed_apart() -> None:
    rehearsed = rehearsal(1, epochs=3)
    lab = whole(rehearsed.run, 1)
    first, later = step_seconds(lab, rehearsed.run, PAIRS)
    assert first != later
    once = step_seconds(lab, rehearsed.run.model_copy(update={"epochs": 1}), PAIRS)
    assert once[0] == once[1]


def test_the_widest_micro_batch_is_that_of_any_step() -> None:
    work = Work(items=PAIRS, lengths=[5, 9, 9, 5, 6, 6, 6, 6], steps=[[0, 1, 2, 3], [4, 5, 6, 7]], again=2)
    assert work.widest(18) == [1, 2] and work.widest(24) == [4, 5, 6, 7] and work.widest(1) == [1]


def test_micro_batches_fill_the_budget_and_do_not_pass_it() -> None:
    rehearsed = rehearsal(3)
    peaks = {tokens: float(rehearsed.at_full_depth(lambda lab, run, tokens=tokens: [peak_bytes(  # type: ignore[misc]
        lab, run.model_copy(update={"micro_tokens": tokens}), [PAIRS[i] for i in WORK.widest(tokens)])])[0])
        for tokens in (27, 54, 108)}
    assert peaks[27] < peaks[54] < peaks[108]
    for budget, least, most in ((peaks[54] * 1.01, 54, 81), (peaks[108] * 1.01, 108, 108), (peaks[27] * 1.01, 27, 53)):
        run = rehearsed.run.model_copy(update={"memory_gb": (1e6 + budget * RESIDENT["cpu"]) / 1e9})
        tight = Rehearsal(run=run, config=rehearsed.config, chat=CHAT, device="cpu")
        assert least <= fitted(tight, WORK, held=1e6).micro_tokens <= most


def test_a_budget_below_one_example_is_one_sentence_that_names_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"memory_gb: 0.001 GB is too little: .* the longest of 27 tokens, this run "
                                          r"takes about \d\.\d\d GB; raise memory_gb to that"):
        fitted(rehearsal(2, memory_gb=0.001), WORK, held=1e7)


SMALL = ["--model", "tiny-llama", "--dtype", "float32", "--steps", "1", "--batch", "4", "--examples", "8"]


def test_a_run_says_and_saves_the_micro_batches_it_derived(tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "sft", str(recipe("sft")), *SMALL, "--out", str(tmp_path / "run")]
    assert main([*command, "--memory_gb", "8"]) == 0
    tokens = safe_load((tmp_path / "run" / "config.yaml").read_text())["micro_tokens"]
    assert tokens != make_run("sft", {}).micro_tokens
    assert f"Micro-batches of at most {tokens} tokens, to stay within 8 GB." in capsys.readouterr().err


@pytest.mark.parametrize("lora", [Lora(rank=4), Lora(rank=4, last_layers=1)])
def test_a_start_gives_the_adapter_its_shape(lora: Lora, tmp_path: Path) -> None:
    model = whole(rehearsal(2).run, 2).model
    model.add_role("policy", lora)
    model.save_role("policy", tmp_path / "start")
    started = rehearsal(2, start=str(tmp_path / "start"), lora={"rank": 16})
    seen: list[Lora] = []
    started.at_full_depth(lambda lab, run: [float(seen.append(run.lora) or 0)])
    assert {each.rank for each in seen} == {4}
    assert any(each.last_layers == 1 for each in seen) == (lora.last_layers == 1)
