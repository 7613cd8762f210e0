"""Supervised fine-tuning: maximise the log-prob of the assistant's tokens, the end-of-turn token included."""

from collections.abc import Iterator, Sequence

from rlhflab.config import Run, SftRun
from rlhflab.core.batch import Shelf, Tree
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import filled_shelf
from rlhflab.train.state import Saved, Schedule, Step, TrainState


def train_sft(run: SftRun, model: SharedModel, demonstrations: Sequence[Tree], *,
              role: str = "policy", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every optimizer step. The loss is the mean over the step's scored tokens, nats a token."""
    schedule = Schedule.of(run, len(demonstrations))
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=len(schedule), saved=saved)
    shelf = filled_shelf(run, model, demonstrations, schedule.past(run.seed, state.done), role=role)
    for indices in schedule.order(run.seed, done=state.done):
        step = [demonstrations[i] for i in indices]
        imitate(run, model, step, state, role=role, shelf=shelf)
        yield state.finish_step({"tokens": sum(len(tree) for tree in step)})


def imitate(run: Run, model: SharedModel, trees: Sequence[Tree], state: TrainState, *, role: str,
            shelf: Shelf | None = None) -> None:
    """One optimizer step on the answers of `trees`."""
    shelf = shelf or Shelf(room=0)
    tokens = sum(tree.scored_tokens for tree in trees)

    def learn(part: list[int]) -> None:
        batch = shelf.pack([trees[i] for i in part], model.device)
        scores = model.logprobs(batch, role)
        (-scores.logprob.sum() / tokens).backward()
        state.note({"loss": -scores.logprob, "entropy": scores.entropy})

    state.accumulate([len(tree) for tree in trees], learn, micro_tokens=run.micro_tokens)
    state.optimize()
