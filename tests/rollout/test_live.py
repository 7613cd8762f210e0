"""The running batch writes what naive generation writes, whenever a request comes in and whoever shares the batch."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import moved_role
from rlhflab.model.mixing import read_factors
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.live import Drawn, LiveAnswer, LiveBatch, QueueFull
from rlhflab.rollout.rows import Reading
from slow_twins import plain_generate

PROMPTS = [(1, 50, 60), (1, 70, 71, 72, 73, 74, 75), (1, 80), tuple(range(3, 43))]
STOPS = [2, 40, 41, 42, 43]


class Heard:
    """What an answer told, and an event for its end."""

    def __init__(self, *, most: int | None = None) -> None:
        self.tokens: list[int] = []
        self.drawn: list[Drawn] = []
        self.ends: list[tuple[str, int]] = []
        self.over, self.most = threading.Event(), most

    def take(self, drawn: Drawn) -> bool:
        self.tokens.append(drawn.token)
        self.drawn.append(drawn)
        return self.most is None or len(self.tokens) < self.most

    def end(self, finish: str, tokens: int) -> None:
        self.ends.append((finish, tokens))
        self.over.set()


def wanted(heard: Heard, **values: object) -> LiveAnswer:
    options = {"prompt": PROMPTS[0], "amounts": {}, "limit": 8, "seed": 1, **values}
    return LiveAnswer(take=heard.take, end=heard.end, **options)  # type: ignore[arg-type]


class Batch:
    """A batch whose thread is this test's: steps are made one by one."""

    def __init__(self, model: SharedModel, **options: int) -> None:
        self.live = LiveBatch(model, stop_ids=STOPS, **{"rows": 4, "columns": 64, "queue": 16, **options})

    def finish(self) -> None:
        """Write until nothing is left."""
        def close_when_idle() -> None:
            while not self.live.idle:
                threading.Event().wait(0.005)
            self.live.close()

        thread = threading.Thread(target=close_when_idle)
        thread.start()
        self.live.run(self.report)
        thread.join()

    def report(self, error: Exception) -> None:
        raise error


def adapters(tmp_path: Path, model: SharedModel) -> dict[str, object]:
    trained = SharedModel.load(model.base.name, dtype="float32", device="cpu")
    for seed, name in enumerate("ab", start=1):
        moved_role(trained, name, seed=seed)
        trained.save_role(name, tmp_path / name)
    return {"model": trained, **{name: read_factors(model, tmp_path / name, digest=name) for name in "ab"}}


@pytest.mark.parametrize("piece", [32, 256])
def test_each_answer_is_that_of_naive_generation_through_few_rows(piece: int, tiny: SharedModel,
                                                                  tmp_path: Path) -> None:
    """16 answers of two adapters and the base through four slots, of different lengths, seeds and temperatures.

    By pieces of 32 tokens, the prompt of 40 is read in two.
    """
    made = adapters(tmp_path, tiny)
    batch, heard = Batch(tiny, piece=piece), [Heard() for _ in range(16)]
    asked = [(PROMPTS[i % 4], "ab"[i % 2] if i % 3 else None, None if i % 5 == 0 else 10 + i, 1 + (7 * i) % 12,
              0.5 + i % 3 / 2) for i in range(16)]
    batch.live.submit([wanted(each, prompt=prompt, amounts={made[name]: 1.0} if name else {}, seed=seed, limit=limit,
                              temperature=temperature)
                       for each, (prompt, name, seed, limit, temperature) in zip(heard, asked, strict=True)])
    batch.finish()
    finishes = set()
    for each, (prompt, name, seed, limit, temperature) in zip(heard, asked, strict=True):
        with torch.no_grad():
            right, _ = plain_generate(made["model"], prompt, name, seed=seed, max_new_tokens=limit, stop_ids=STOPS,
                                      temperature=temperature)
        stopped = right[-1] in STOPS
        assert each.tokens == (right[:-1] if stopped else right)
        assert each.ends == [("stop" if stopped else "length", len(right))]
        finishes |= {each.ends[0][0]}
    assert finishes == {"stop", "length"}, "the test must see both ends"


def test_an_answer_joins_while_another_is_written(llama: SharedModel) -> None:
    batch, first, second = Batch(llama), Heard(), Heard()
    late = wanted(second, prompt=PROMPTS[1], seed=5)

    def take(drawn: Drawn) -> bool:
        if len(first.tokens) == 2:
            batch.live.submit([late])
        return first.take(drawn)

    early = wanted(first, limit=12, seed=None)
    early.take = take
    batch.live.submit([early])
    batch.finish()
    for heard, prompt, seed, limit in ((first, PROMPTS[0], None, 12), (second, PROMPTS[1], 5, 8)):
        with torch.no_grad():
            right, _ = plain_generate(llama, prompt, None, seed=seed, max_new_tokens=limit, stop_ids=STOPS)
        assert heard.tokens == [token for token in right if token not in STOPS]


LONG = (1, *range(50, 218))
"""169 tokens: six pieces of 32, the last one short."""


def pieces_read(monkeypatch: pytest.MonkeyPatch, batch: "Batch", then: Callable[[int], None]) -> list[tuple[int, int]]:
    """(prompts, tokens of each) of every piece that is read; `then` is told how many there were after each."""
    pieces, go_on = [], Reading.go_on

    def noted(reading: Reading, columns: int) -> None:
        before = reading.done
        go_on(reading, columns)
        pieces.append((len(reading.tokens), reading.done - before))
        then(len(pieces))

    monkeypatch.setattr(Reading, "go_on", noted)
    return pieces


def test_a_short_request_is_answered_while_a_long_prompt_is_read(llama: SharedModel,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the first of six pieces and has its first token before the third."""
    batch, long, short, waits = Batch(llama, columns=256, piece=32), Heard(), Heard(), Heard()
    heard_of_short: list[int] = []

    def then(pieces: int) -> None:
        if pieces == 1:
            batch.live.submit([wanted(short, seed=None, limit=3), wanted(waits, prompt=LONG[:64], seed=None)])
        heard_of_short.append(len(short.tokens))

    read = pieces_read(monkeypatch, batch, then)
    batch.live.submit([wanted(long, prompt=LONG, seed=None), wanted(Heard(), prompt=LONG)])
    batch.finish()
    assert read == [(1, 32)] * 9 and heard_of_short == [0, 0, 0, 1, 2, 3, 3, 3, 3], "a step between each two pieces"
    for heard, prompt, limit in ((long, LONG, 8), (short, PROMPTS[0], 3), (waits, LONG[:64], 8)):
        with torch.no_grad():
            right, _ = plain_generate(llama, prompt, None, seed=None, max_new_tokens=limit, stop_ids=STOPS)
        assert heard.tokens == [token for token in right if token not in STOPS]


def test_a_long_prompt_that_nobody_waits_for_is_read_no_further(llama: SharedModel,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    batch, heard, next_one = Batch(llama, rows=1, columns=256, piece=32), Heard(), Heard()
    answer = wanted(heard, prompt=LONG)

    def then(pieces: int) -> None:
        answer.cancelled = pieces >= 2

    read = pieces_read(monkeypatch, batch, then)
    batch.live.submit([answer, wanted(next_one, seed=None)])
    batch.finish()
    assert heard.ends == [("cancelled", 0)] and len(read) == 3, "two pieces, and the prompt of the next"
    assert next_one.ends[0][0] in ("stop", "length")


def test_a_piece_that_cannot_be_read_ends_the_answers_that_wait_for_it(llama: SharedModel,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    batch, broken, fine = Batch(llama, columns=256, piece=32), Heard(), Heard()
    reported: list[Exception] = []

    def then(pieces: int) -> None:
        if pieces == 2:
            batch.live.submit([wanted(fine, seed=None)])
            raise MemoryError("none left")

    pieces_read(monkeypatch, batch, then)
    monkeypatch.setattr(batch, "report", reported.append)
    batch.live.submit([wanted(broken, prompt=LONG)])
    batch.finish()
    assert [str(error) for error in reported] == ["none left"]
    assert broken.ends == [("failed", 0)] and fine.ends[0][0] in ("stop", "length")


def test_logprobs_are_those_of_the_model_whatever_the_temperature(llama: SharedModel) -> None:
    batch, heard = Batch(llama), Heard()
    batch.live.submit([wanted(heard, temperature=0.3, likeliest=2, limit=1)])
    batch.finish()
    with torch.no_grad():
        states = llama.decoder(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).last_hidden_state[0, -1]
        right = (llama.unembedding @ states).log_softmax(-1)
    [drawn] = heard.drawn
    assert drawn.logprob == pytest.approx(float(right[drawn.token]), abs=1e-4)
    assert [token for token, _ in drawn.likeliest] == right.topk(2).indices.tolist()


def test_more_than_may_wait_is_refused_whole(llama: SharedModel) -> None:
    batch = Batch(llama, queue=3)
    batch.live.submit([wanted(Heard()) for _ in range(2)])
    with pytest.raises(QueueFull, match="2 answers are waiting and 2 more were asked for; at most 3 may wait"):
        batch.live.submit([wanted(Heard()) for _ in range(2)])
    assert len(batch.live._waiting) == 2


def test_who_wants_no_more_frees_the_row(llama: SharedModel) -> None:
    batch, heard, other, waiting = Batch(llama, rows=1), Heard(), Heard(), Heard()
    answer, gone = wanted(heard, limit=50, seed=None), wanted(waiting)
    gone.cancelled = True
    heard.most = 3

    def leave(drawn: Drawn) -> bool:
        answer.cancelled = not heard.take(drawn)
        return True

    answer.take = leave
    batch.live.submit([answer, gone, wanted(other, seed=None, limit=3)])
    batch.finish()
    assert heard.ends == [("cancelled", 3)] and waiting.ends == [("cancelled", 0)]
    assert len(other.tokens) == 3, "the row was free for the next"


def test_a_failing_step_ends_its_answers_and_the_next_are_written(llama: SharedModel,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    batch, broken, fine = Batch(llama), Heard(), Heard()
    reported: list[Exception] = []
    decode, calls = LiveBatch._decode, []

    def once(live: LiveBatch) -> None:
        calls.append(1)
        if len(calls) == 1:
            live.submit([wanted(fine, seed=None)])
            raise MemoryError("none left")
        decode(live)

    monkeypatch.setattr(LiveBatch, "_decode", once)
    monkeypatch.setattr(batch, "report", reported.append)
    batch.live.submit([wanted(broken, seed=None)])
    batch.finish()
    assert [str(error) for error in reported] == ["none left"]
    assert broken.ends == [("failed", 1)] and fine.ends[0][0] in ("stop", "length")


def test_numbers_that_overflow_end_their_answer_and_leave_the_slot_clean(llama: SharedModel, tmp_path: Path) -> None:
    made = adapters(tmp_path, llama)
    batch, broken, fine = Batch(llama, rows=1), Heard(), Heard()
    batch.live.submit([wanted(broken, amounts={made["a"]: 1e38}), wanted(fine, prompt=PROMPTS[1], seed=None)])
    batch.finish()
    assert broken.ends[0][0] == "failed"
    with torch.no_grad():
        right, _ = plain_generate(llama, PROMPTS[1], None, seed=None, max_new_tokens=8, stop_ids=STOPS)
    assert fine.tokens == [token for token in right if token not in STOPS]


def test_what_is_not_written_at_the_end_has_failed(llama: SharedModel) -> None:
    batch, heard = Batch(llama), Heard()
    batch.live.submit([wanted(heard)])
    batch.live.close()
    batch.live.run(batch.report)
    assert heard.ends == [("failed", 0)]
    with pytest.raises(Exception, match="the server is going down"):
        batch.live.submit([wanted(Heard())])


def test_sixteen_at_once_take_as_many_steps_as_one(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the throughput at many clients comes from, without a clock."""
    steps, decode = [], LiveBatch._decode
    monkeypatch.setattr(LiveBatch, "_decode", lambda live: steps.append(len(live.live)) or decode(live))
    batch, heard = Batch(llama, rows=16), [Heard() for _ in range(16)]
    batch.live.stop_ids = frozenset()
    batch.live.submit([wanted(each, seed=seed, prompt=PROMPTS[seed % 3]) for seed, each in enumerate(heard)])
    batch.finish()
    assert steps == [16] * 7, "the first of eight tokens comes of the prefill"
