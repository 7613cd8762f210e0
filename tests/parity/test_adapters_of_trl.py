"""What TRL's own DPO trainer leaves on disk after a step loads here with PEFT's log-probs, and tells how it was made.

Importing TRL takes about ten seconds.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from foreign_folders import IDS, their_logprobs
from rlhflab.model.load import model_folder
from rlhflab.model.shared import SharedModel
from rlhflab.registry.sources import look_at
from rlhflab.registry.told import told_by
from rlhflab.runs.targets import target_of
from trl_peer import trainer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL: pip install -e '.[parity]'")

ROWS = [{"prompt": f"say {letter} ", "chosen": letter, "rejected": "no no"} for letter in "abcd"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TRL's output folder after two steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("trl")
    base = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
    peft = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", use_rslora=True,
                                           target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}))
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_length": None,
                                "save_strategy": "steps", "save_steps": 1}
    made = trainer("DPO", peft, ROWS, SharedModel.load("tiny-llama", dtype="float32", device="cpu").tokenizer, folder,
                   **settings)
    made.train()
    made.save_model()
    return folder / "trl"


def test_the_output_folder_and_each_checkpoint_read_as_in_peft(output: Path, llama: SharedModel) -> None:
    for role, name in (("whole", "."), ("first", "checkpoint-1"), ("second", "checkpoint-2")):
        base = AutoModelForCausalLM.from_pretrained(model_folder("tiny-llama")[0], dtype=torch.float32)
        expected = their_logprobs(PeftModel.from_pretrained(base, output / name).eval())
        found = target_of(f"tiny-llama+{output / name}").adapter
        assert found == output / name
        llama.load_role(role, found)
        with torch.no_grad(), llama.playing(role):
            states = llama.decoder(input_ids=IDS).last_hidden_state
            ours = torch.nn.functional.linear(states, llama.unembedding).log_softmax(-1)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        with torch.no_grad():
            before = llama.base.model(input_ids=IDS).logits.log_softmax(-1)
        assert (expected - before).abs().max() > 1e-3


def test_the_reference_that_trl_saves_beside_it_is_found_by_its_name(output: Path) -> None:
    assert look_at(output, role="ref").folder == output / "ref"


def test_its_files_tell_of_trl_its_version_steps_and_learning_rate(output: Path) -> None:
    import trl

    told = {each["file"]: each["says"] for each in told_by(look_at(output).folder) or ()}
    card, state = told["README.md"], told["checkpoint-2/trainer_state.json"]
    assert (card["trainer"], card["trainer_version"], card["method"]) == ("TRL", trl.__version__, "dpo")
    assert (state["steps"], state["batch"], state["learning_rate"]) == (2, 2, 1e-2) and state["loss"] > 0
    assert "never opened" in told["training_args.bin"]["not_read"]
