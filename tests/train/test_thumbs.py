"""KTO and BCO learn from single thumbs; their baselines belong to the whole step and survive a checkpoint."""

import pytest
import torch

from conftest import moved_role
from rlhflab.config import DpoRun, Lora, make_run
from rlhflab.core.batch import ThumbTree, TokenAnswer, Tree, pack, thumb_index
from rlhflab.data.types import Message, Prompt, Thumb
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.runs.sources import MOST_PAIRS, group_by_prompt
from rlhflab.train.thumbs import RunningShift, mismatched_kl, next_others, train_thumbs
from slow_twins import plain_logprobs

FAST = {"dtype": "float32", "batch": 8, "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}}
STEADY = {"learning_rate": 1e-2, "epsilon": 1e-3}


def thumb_trees(n: int) -> list[ThumbTree]:
    """Every second prompt has a good and a bad answer, the others one of either."""
    trees = []
    for i in range(n):
        good, bad = TokenAnswer(ids=(100, 101 + i % 3, 2)), TokenAnswer(ids=(120, 121, 122, 2)[:2 + i % 3])
        labels = (True, False) if i % 2 else (i % 4 == 2,)
        answers = tuple(good if label else bad for label in labels)
        trees.append(ThumbTree(tree=Tree(prompt=tuple(range(10, 12 + i % 5)), answers=answers),
                               judged=tuple(range(len(answers))), good=labels))
    return trees


def thumbs_run(loss: str, **settings: object) -> DpoRun:
    run = make_run("dpo", {**FAST, "loss": {"name": loss}, **settings})
    assert isinstance(run, DpoRun)
    return run


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_good_answers_become_likelier_than_bad_ones(llama: SharedModel, loss: str) -> None:
    llama.add_role("policy", Lora(rank=8))
    trees = thumb_trees(16)
    steps = list(train_thumbs(thumbs_run(loss, epochs=6), llama, trees, reference=None))
    assert steps[0].metrics["reward_chosen"] == steps[0].metrics["reward_rejected"] == steps[0].metrics["baseline"] == 0
    batch = pack([each.tree for each in trees])
    answers, good = thumb_index(trees)
    sums = {role: torch.zeros(batch.answers).index_add(0, batch.owner, torch.cat(
        tree_logprobs(llama, [each.tree for each in trees], role=role, micro_tokens=512)))[answers]
        for role in ("policy", None)}
    shift = sums["policy"] - sums[None]
    assert shift[good].min() > shift[~good].max()
    assert steps[-1].metrics["accuracy"] == 1


@pytest.mark.parametrize("loss", ["kto", "bco"])
def test_accumulated_micro_batches_equal_one_big_batch(loss: str) -> None:
    results = []
    for micro_tokens in (16, 4096):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        moved_role(model, "policy")
        model.add_role("reference", Lora(), copy_of="policy", trainable=False)
        run = thumbs_run(loss, epochs=3, micro_tokens=micro_tokens, optimizer=STEADY)
        steps = list(train_thumbs(run, model, thumb_trees(8), reference="reference"))
        results.append((torch.cat([p.detach().flatten() for p in model.parameters("policy")]),
                        [step.metrics["baseline"] for step in steps]))
    assert results[0][1][-1] != 0
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-2, abs=1e-4)
    torch.testing.assert_close(results[0][0], results[1][0], atol=2e-4, rtol=2e-3)


def test_the_kl_is_read_on_the_answers_to_the_next_prompt(llama: SharedModel) -> None:
    moved_role(llama, "policy", seed=2)
    moved_role(llama, "reference", seed=1, trainable=False)
    trees = [each.tree for each in thumb_trees(5)]
    ratios = []
    for i, tree in enumerate(trees):
        apart = Tree(prompt=tree.prompt, answers=trees[(i + 1) % 5].answers)
        ratios += [(a - b).sum() for a, b in zip(*(plain_logprobs(llama, apart, role) for role in (
            "policy", "reference")), strict=True)]
    expected = float(torch.stack(ratios).detach().mean())
    run = thumbs_run("kto", micro_tokens=16)
    got = mismatched_kl(run, llama, trees, role="policy", reference="reference")
    assert got == pytest.approx(max(0.0, expected), rel=1e-4)
    back = mismatched_kl(run, llama, trees, role="reference", reference="policy")
    assert back == pytest.approx(max(0.0, -expected), rel=1e-4) and got + back > 0.1, "one of both is cut off at 0"


def test_no_prompt_is_mismatched_with_itself(llama: SharedModel) -> None:
    one, again, two = (Tree(prompt=prompt, answers=(TokenAnswer(ids=(20 + i, 2)),))
                       for i, prompt in enumerate([(10, 11), (10, 11), (10, 12)]))
    assert next_others([one, again, two]) == [two, two, one] and next_others([one, two]) == [two, one]
    assert next_others([one, again]) == [None, None]
    moved_role(llama, "policy", seed=2)
    apart = [Tree(prompt=tree.prompt, answers=other.answers) for tree, other in ((one, two), (again, two), (two, one))]
    ratios = [(a - b).sum() for tree in apart for a, b in zip(*(
        plain_logprobs(llama, tree, role) for role in ("policy", None)), strict=True)]
    kl = [mismatched_kl(thumbs_run("kto"), llama, [one, again, two], role=role, reference=reference)
          for role, reference in (("policy", None), (None, "policy"))]
    assert kl[0] - kl[1] == pytest.approx(float(torch.stack(ratios).detach().mean()), rel=1e-4), "one of both is 0"
    assert mismatched_kl(thumbs_run("kto"), llama, [one, again], role="policy", reference=None) == 0


def test_a_step_can_hold_a_prompt_twice() -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    thumbs = [Thumb(prompt=prompt, answer=str(i), good=True) for i in range(MOST_PAIRS + 1)]
    assert [len(group) for group in group_by_prompt(thumbs)] == [MOST_PAIRS, 1]


def test_a_mismatched_answer_is_cut_where_it_would_not_fit(llama: SharedModel) -> None:
    moved_role(llama, "policy", seed=2)
    long, short = TokenAnswer(ids=tuple(range(30, 50))), TokenAnswer(ids=(60, 2))
    trees = [Tree(prompt=tuple(range(10, 26)), answers=(short,)), Tree(prompt=(10, 11), answers=(long,))]
    cut = [Tree(prompt=trees[0].prompt, answers=(TokenAnswer(ids=long.ids[:8]),)),
           Tree(prompt=(10, 11), answers=(short,))]
    with torch.no_grad():
        ratio = sum(float((plain_logprobs(llama, each, "policy")[0] - plain_logprobs(llama, each, None)[0]).sum())
                    for each in cut) / 2
    got = mismatched_kl(thumbs_run("kto", max_length=24), llama, trees, role="policy", reference=None)
    assert got == pytest.approx(max(0.0, ratio), rel=1e-4)


def test_a_step_on_one_prompt_has_no_other_answers(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    assert mismatched_kl(thumbs_run("kto"), llama, [thumb_trees(1)[0].tree], role="policy", reference=None) == 0.0


def test_the_shift_weighs_labels_alike_whatever_their_number() -> None:
    shift = RunningShift()
    shift.update(torch.tensor([1.0, 2.0, 3.0, -4.0]), torch.tensor([True, True, True, False]))
    # a tenth of the way from 0: good .2, bad -.4
    assert shift.state_dict() == pytest.approx({"good": 0.2, "bad": -0.4}) and shift.value == pytest.approx(-0.1)
    shift.update(torch.tensor([10.0]), torch.tensor([True]))
    assert shift.state_dict() == pytest.approx({"good": 0.9 * 0.2 + 1.0, "bad": -0.4}), "no bad answer, so no change"
    again = RunningShift()
    again.load_state_dict(shift.state_dict())
    assert again.value == shift.value


def test_bco_uses_the_shift_of_the_steps_before(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=8))
    steps = list(train_thumbs(thumbs_run("bco", steps=3, epochs=3), llama, thumb_trees(8), reference=None))
    logged = [step.metrics["baseline"] for step in steps]
    assert logged[:2] == [0, 0], "the first step has seen nothing, and the second one a policy that is its reference"
    second = steps[1].metrics
    expected = 0.1 * (second["reward_chosen"] + second["reward_rejected"]) / 2 / 0.1  # type: ignore[operator]
    assert logged[2] == pytest.approx(expected, rel=1e-4)


def test_a_label_that_a_step_has_not_is_none_in_its_metrics(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=8))
    good = [ThumbTree(tree=each.tree, judged=each.judged, good=(True,) * len(each.good)) for each in thumb_trees(4)]
    steps = list(train_thumbs(thumbs_run("kto", steps=1), llama, good, reference=None))
    assert steps[0].metrics["reward_rejected"] is None and steps[0].metrics["reward_chosen"] == 0
