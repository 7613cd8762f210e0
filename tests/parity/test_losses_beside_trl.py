"""Every loss that TRL 1.16 also has: value and gradient of each LoRA tensor on the same text, by TRL's own code.

The texts go through TRL's own tokenising, padding and forward pass on one side and through trees with shared prompts
on the other. TRL has no cDPO, R-DPO, DPOP and IPO on sums, and no BCO with its running shift any more: those have only
the hand-worked numbers of `tests/core`. Where TRL differs on purpose or by mistake, a test says so:

- its NLL terms (`sft`, CPO, ORPO) are means over the tokens of a micro-batch, so a long answer counts more and gradient
  accumulation changes the loss; ours is a mean over each answer, then over the step (arXiv:2404.19733 eq. 1);
- its ORPO learns the prompt too; ours only the answer, as arXiv:2403.07691 writes P(y|x);
- its KTO takes the KL of each micro-batch; ours that of the whole step;
- it refuses to move the reference of a LoRA run.

Importing TRL takes about ten seconds.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from conftest import moved_role
from rlhflab.config import DpoRun, make_run
from rlhflab.core.batch import pack, pair_index, thumb_index
from rlhflab.core.preference import answer_logprobs
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, PreferencePair, Prompt, Thumb
from rlhflab.model.shared import SharedModel
from rlhflab.runs.sources import group_by_prompt, preference_tree, thumb_tree
from rlhflab.train.dpo import pair_loss
from rlhflab.train.preferences import objective
from rlhflab.train.thumbs import mismatched_kl
from trl_peer import gradients, load_as, peft_model, trainer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL: pip install -e '.[parity]'")

TEXTS = [("hello", "good day", "bad"), ("add 1 and 2", "3", "it is twelve, I think"), ("why", "so", "no")]
PAIRS = [PreferencePair(prompt=Prompt(id=asked, messages=(Message(role="user", content=asked),)), chosen=chosen,
                        rejected=rejected) for asked, chosen, rejected in TEXTS]


class Peer(NamedTuple):
    """Our model, TRL's trainer on the same tensors, and a batch of it."""

    model: SharedModel
    trainer: Any
    batch: Any


def two_roles(kind: str) -> SharedModel:
    model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
    # For KTO the other way round: there the policy finds other prompts' answers likelier, and the KL is above 0.
    for seed, role in zip((2, 1) if kind == "KTO" else (1, 2), ("policy", "reference"), strict=True):
        moved_role(model, role, seed=seed, trainable=role == "policy")
        with torch.no_grad():
            for parameter in model.parameters(role):
                parameter.mul_(0.4)  # log-ratios of a few nats, where every loss is curved
    return model


def peer_of(kind: str, rows: list[dict[str, Any]], folder: Path, **settings: Any) -> Peer:
    model = two_roles(kind)
    peft = peft_model(model, "policy", folder)
    made = trainer(kind, peft, rows, model.tokenizer, folder, per_device_train_batch_size=len(rows), max_length=None,
                   **settings)
    if "ref" in peft.peft_config:
        load_as(peft, "ref", model, "reference", folder)
    return Peer(model, made, made.data_collator([made.train_dataset[i] for i in range(len(rows))]))


def opened(asked: str) -> str:
    """What TRL is to read before the answer; it adds the end of turn itself."""
    return f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"


def pair_rows(texts: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"prompt": opened(asked), "chosen": chosen, "rejected": rejected} for asked, chosen, rejected in texts]


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    return peer_of("DPO", pair_rows(TEXTS), tmp_path_factory.mktemp("dpo"))


def ours(model: SharedModel, pairs: list[PreferencePair], **settings: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss of the pairs and its gradient."""
    run = make_run("dpo", settings)
    assert isinstance(run, DpoRun)
    goal, chat = objective(run), ChatFormat(model.tokenizer)
    trees = [preference_tree(chat, group) for group in group_by_prompt(pairs)]
    batch = pack([each.tree for each in trees])
    reference = model.logprobs(batch, "reference").logprob.detach() if goal.has_reference else None
    loss = pair_loss(run, goal.loss_of, model.logprobs(batch, "policy").logprob, reference, batch, *pair_index(trees))
    return loss.each.mean().item(), taken(model, loss.each.mean())


def taken(model: SharedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of `loss` by the names that PEFT stores tensors by."""
    loss.backward()
    found = {}
    for name, parameter in zip(model.adapter("policy"), model.parameters("policy"), strict=True):
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad.clone(), None
    return found


def theirs(peer: Peer, loss: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    loss.backward()
    return loss.item(), gradients(peer.trainer.model)


def assert_same(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-5)
    assert one[1].keys() == other[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in one[1].values())
    assert largest > 1e-3
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=1e-5 * max(1.0, largest), rtol=1e-5,
                                   msg=lambda text, name=name: f"{name}: {text}")


def dpo_theirs(peer: Peer, loss_types: list[str], weights: list[float], **settings: Any) -> Any:
    """What TRL's DPO trainer makes of its batch; `settings` as its constructor takes them over from the config."""
    made = peer.trainer
    made.loss_types, made.loss_weights = loss_types, weights
    made.beta, made.label_smoothing, made.ld_alpha = 0.1, 0.0, None
    for key, value in settings.items():
        assert hasattr(made, key)
        setattr(made, key, value)
    return theirs(peer, made._compute_loss(made.model, peer.batch, False))


def test_both_read_the_same_tokens(dpo: Peer) -> None:
    chat = ChatFormat(dpo.model.tokenizer)
    for pair, row in zip(PAIRS, dpo.trainer.train_dataset, strict=True):
        assert tuple(row["prompt_ids"]) == chat.prompt(pair.prompt)
        assert tuple(row["chosen_ids"]) == chat.answer(pair.chosen)
        assert tuple(row["rejected_ids"]) == chat.answer(pair.rejected)


@pytest.mark.parametrize(("loss", "run", "loss_type", "settings"), [
    ({"name": "dpo", "beta": 0.3}, {}, "sigmoid", {"beta": 0.3}),
    ({"name": "dpo", "beta": 2.0}, {"length": "mean"}, "sigmoid_norm", {"beta": 2.0}),
    ({"name": "dpo"}, {"ld_alpha": 0.3}, "sigmoid", {"ld_alpha": 0.3}),
    ({"name": "robust", "label_noise": 0.2}, {}, "robust", {"label_smoothing": 0.2}),
    ({"name": "hinge"}, {}, "hinge", {}),
    ({"name": "ipo_avg"}, {}, "ipo", {}),
    ({"name": "exo", "label_noise": 0.1}, {}, "exo_pair", {"label_smoothing": 0.1}),
    ({"name": "exo", "label_noise": 0.1}, {"ld_alpha": 0.0}, "exo_pair", {"label_smoothing": 0.1, "ld_alpha": 0.0}),
    ({"name": "sppo"}, {}, "sppo_hard", {}),
    ({"name": "nca"}, {}, "nca_pair", {}),
    ({"name": "bco_pair"}, {}, "bco_pair", {}),
    ({"name": "apo_zero"}, {}, "apo_zero", {}),
    ({"name": "apo_down"}, {"ld_alpha": 0.7}, "apo_down", {"ld_alpha": 0.7}),
])
def test_a_loss_with_a_reference_is_trls(dpo: Peer, loss: dict[str, Any], run: dict[str, Any], loss_type: str,
                                         settings: dict[str, Any]) -> None:
    assert_same(ours(dpo.model, PAIRS, loss=loss, **run), dpo_theirs(dpo, [loss_type], [1.0], **settings))


def of_equal_length(folder: Path, kind: str, **settings: Any) -> tuple[Peer, list[PreferencePair]]:
    """Two pairs whose chosen answers have the same length: there the mean over tokens is the mean over answers."""
    texts = [("hello", "good day", "bad"), ("add 1 and 2", "so three", "it is twelve")]
    return peer_of(kind, pair_rows(texts), folder, **settings), [
        PreferencePair(prompt=Prompt(id=asked, messages=(Message(role="user", content=asked),)), chosen=chosen,
                       rejected=rejected) for asked, chosen, rejected in texts]


def test_the_likelihood_term_is_trls_where_answers_have_one_length(tmp_path: Path) -> None:
    peer, pairs = of_equal_length(tmp_path, "DPO")
    assert_same(ours(peer.model, pairs, nll_weight=0.5), dpo_theirs(peer, ["sigmoid", "sft"], [1.0, 0.5]))


def test_the_likelihood_term_of_a_pair_does_not_depend_on_the_others(dpo: Peer) -> None:
    whole = ours(dpo.model, PAIRS, nll_weight=0.5)[0]
    each = [ours(dpo.model, [pair], nll_weight=0.5)[0] for pair in PAIRS]
    assert whole == pytest.approx(sum(each) / 3, rel=1e-5)
    assert dpo_theirs(dpo, ["sigmoid", "sft"], [1.0, 0.5])[0] != pytest.approx(whole, rel=1e-3), \
        "TRL takes the mean over all tokens of the micro-batch"


@pytest.mark.parametrize(("loss", "settings"), [
    ({"name": "cpo", "beta": 0.2, "nll": 0.7}, {"loss_type": "sigmoid", "beta": 0.2, "cpo_alpha": 0.7}),
    ({"name": "simpo", "beta": 2.0, "gamma": 0.5},
     {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0})])
def test_cpo_and_simpo_are_trls_where_answers_have_one_length(tmp_path: Path, loss: dict[str, Any],
                                                              settings: dict[str, Any]) -> None:
    peer, pairs = of_equal_length(tmp_path, "CPO", **settings)
    loss_of_trl, _ = peer.trainer.get_batch_loss_metrics(peer.trainer.model, peer.batch)
    assert_same(ours(peer.model, pairs, loss=loss), theirs(peer, loss_of_trl))


def test_orpo_is_trls_but_for_the_likelihood_of_the_prompt(tmp_path: Path) -> None:
    peer, pairs = of_equal_length(tmp_path, "ORPO", beta=0.2)
    made = peer.trainer
    chosen, rejected, _, _, with_prompt = made.concatenated_forward(made.model, peer.batch)
    odds = -made.odds_ratio_loss(chosen, rejected)[0].mean()
    nll = -chosen.mean()
    assert with_prompt.item() != pytest.approx(nll.item(), rel=1e-2)
    assert made.get_batch_loss_metrics(made.model, peer.batch)[0].item() == pytest.approx(
        (with_prompt + odds).item(), rel=1e-6)
    assert_same(ours(peer.model, pairs, loss={"name": "orpo", "odds_weight": 0.2}), theirs(peer, nll + odds))


# -- thumbs ------------------------------------------------------------------------------------------------------------

THUMBS = [Thumb(prompt=pair.prompt, answer=answer, good=good) for pair, answer, good in zip(
    PAIRS, ("good day", "it is twelve, I think", "so"), (True, False, True), strict=True)]


@pytest.fixture(scope="module")
def kto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    rows = [{"prompt": opened(thumb.prompt.id), "completion": thumb.answer, "label": thumb.good} for thumb in THUMBS]
    yield peer_of("KTO", rows, tmp_path_factory.mktemp("kto"), beta=0.2, desirable_weight=1.5, undesirable_weight=0.5,
                  train_sampling_strategy="sequential")


def kto_ours(model: SharedModel, thumbs: list[Thumb]) -> tuple[float, float, dict[str, torch.Tensor]]:
    """(KL, mean loss, gradient) of a step on all thumbs."""
    run = make_run("dpo", {"loss": {"name": "kto", "beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}})
    assert isinstance(run, DpoRun)
    chat = ChatFormat(model.tokenizer)
    trees = [thumb_tree(chat, group) for group in group_by_prompt(thumbs)]
    kl = mismatched_kl(run, model, [each.tree for each in trees], role="policy", reference="reference")
    batch = pack([each.tree for each in trees])
    policy, reference = (model.logprobs(batch, role).logprob for role in ("policy", "reference"))
    answers = answer_logprobs(policy, reference.detach(), batch.owner, batch.answers)
    judged, good = thumb_index(trees)
    loss = objective(run).loss_of(answers.of(judged), good, torch.tensor(kl)).each.mean()
    return kl, loss.item(), taken(model, loss)


def test_kto_is_trls_on_the_same_mismatched_answers(kto: Peer) -> None:
    # TRL gives each prompt the answer of the row before; in the reverse order that is the row after, as ours.
    kl, *loss = kto_ours(kto.model, THUMBS[::-1])
    expected = theirs(kto, kto.trainer._compute_loss(kto.trainer.model, kto.batch, False))
    assert kl == pytest.approx(kto.trainer._metrics["train"]["kl"][-1], abs=1e-5) and kl > 0.1
    assert_same((loss[0], loss[1]), expected)


def test_trl_takes_the_kl_of_each_micro_batch(kto: Peer) -> None:
    made, losses = kto.trainer, []
    for i in range(3):
        alone = made.data_collator([made.train_dataset[i]])
        losses.append(made._compute_loss(made.model, alone, False).item())
    kls = made._metrics["train"]["kl"][-3:]
    assert max(kls) - min(kls) > 0.1, "rows of one step, each with another baseline"
    assert sum(losses) / 3 != pytest.approx(kto_ours(kto.model, THUMBS[::-1])[1], rel=1e-3)


def test_trl_cannot_move_the_reference_of_a_lora_run(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"sync_ref_model|PEFT|peft"):
        peer_of("DPO", pair_rows(TEXTS), tmp_path, sync_ref_model=True)
