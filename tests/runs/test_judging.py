"""Labels of a judge: both orders or nothing, people first, and no question asked twice."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from local_server import LocalServer
from rlhflab.cli import main
from rlhflab.data.formats import write_jsonl
from rlhflab.data.types import Comparison, Judged, Judgment, Message, Prompt
from rlhflab.errors import ConfigError, DataError, RunError
from rlhflab.progress import Progress
from rlhflab.rollout.served_judge import server_ask
from rlhflab.runs.comparisons import judged_row, read_judged
from rlhflab.runs.judging import Judge, judge_file, open_judge


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHFLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def longer(text: str) -> str:
    """A judge who likes length, by what a question says."""
    a, _, rest = text.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
    return "A" if len(a) > len(rest.partition("\n\nWhich")[0]) else "B"


def judge_of(reply: Callable[[str], str | None], seen: list[str] | None = None, *, name: str = "test") -> Judge:
    def ask(questions: Sequence[Prompt]) -> list[str | None]:
        texts = [question.messages[0].content for question in questions]
        if seen is not None:
            seen.extend(texts)
        return [reply(text) for text in texts]

    return Judge(name=f"judge:{name}", key=(name,), ask=ask)


def rows(path: Path, labels: str) -> Path:
    """A file of comparisons, of which `b` is longer; a letter is what one person said, a dot that nobody did."""
    path.write_text("".join(json.dumps({
        "prompt": f"question {i}", "a": f"short {i}", "b": f"much longer answer {i}",
        "judgments": [] if label == "." else [{"verdict": label, "annotator": "anna"}]}) + "\n"
        for i, label in enumerate(labels)))
    return path


def judge(path: Path, judge: Judge, **options: Any) -> dict[str, Any]:
    return judge_file(path, judge, out=path.with_name("out.jsonl"), progress=Progress(), **options)


def test_a_judge_that_agrees_with_people_labels_what_they_did_not(tmp_path: Path) -> None:
    found = judge(rows(tmp_path / "in.jsonl", "bbba.."), judge_of(longer))
    assert found["people"]["agreement"]["mean"] == 0.75 and found["people"]["agreement"]["n"] == 4
    assert found["people"]["kappa"] is not None and found["scored"] == 6 and found["unscored"] == {}
    written = read_judged(tmp_path / "out.jsonl")
    assert [[(j.annotator, j.verdict) for j in row.judgments] for row in written[3:5]] == [
        [("anna", "a"), ("judge:test", "b")], [("judge:test", "b")]]


def test_below_the_asked_agreement_nothing_is_written_or_asked_of_the_rest(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(RunError, match=r"on 0\.250 \[.*\] of 4 comparisons, below --min-agreement 0\.6; no labels"):
        judge(rows(tmp_path / "in.jsonl", "baaa...."), judge_of(longer, seen))
    assert not (tmp_path / "out.jsonl").exists() and len(seen) == 8, "four comparisons in both orders"
    assert judge(tmp_path / "in.jsonl", judge_of(longer), min_agreement=0.2)["scored"] == 8


def test_a_broken_row_stops_a_judge_unless_it_is_left_out(tmp_path: Path) -> None:
    path = rows(tmp_path / "c.jsonl", "bb.")
    path.write_text(path.read_text() + '{"prompt": "q", "a": "x"}\n')
    with pytest.raises(DataError, match=r"c.jsonl:4: 'b' is missing"):
        judge(path, judge_of(longer))
    assert judge(path, judge_of(longer), skip_bad=True)["comparisons"] == 3


def test_a_verdict_that_changes_with_the_order_is_none_with_its_reason(tmp_path: Path) -> None:
    path = rows(tmp_path / "in.jsonl", "bb.")
    with pytest.raises(RunError, match=r"gave no verdict that counts on 2 .*chose place A in both orders: 2"):
        judge(path, judge_of(lambda text: "A"))
    found = judge(path, judge_of(lambda text: "A"), min_agreement=0.0)
    assert found["scored"] == 0 and found["unscored"] == {"the judge chose place A in both orders": 3}
    (*_, last) = read_judged(tmp_path / "out.jsonl")
    assert last.judgments == () and last.meta["unscored"]["reason"] == "the judge chose place A in both orders"


def test_without_labels_of_people_a_judge_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing says how good the judge is"):
        judge(rows(tmp_path / "in.jsonl", ".."), judge_of(longer))
    elsewhere = rows(tmp_path / "known.jsonl", "bbb")
    assert judge(tmp_path / "in.jsonl", judge_of(longer), labelled=elsewhere)["scored"] == 2


def test_an_earlier_judge_is_not_one_of_the_people(tmp_path: Path) -> None:
    rows(tmp_path / "in.jsonl", "bb..")
    judge(tmp_path / "in.jsonl", judge_of(longer))
    (tmp_path / "out.jsonl").rename(tmp_path / "again.jsonl")
    found = judge(tmp_path / "again.jsonl", judge_of(longer, name="other"))
    assert found["people"]["agreement"]["n"] == 2, "those that only a judge labelled are no measure"


def test_a_question_is_asked_once_whatever_was_cut_off(tmp_path: Path, cache: Path) -> None:
    path, seen = rows(tmp_path / "in.jsonl", "bb."), list[str]()
    first = judge(path, judge_of(longer, seen))
    assert (first["asked"], len(seen)) == (6, 6)
    (kept,) = (cache / "judgments").iterdir()
    kept.write_text(kept.read_text().rstrip("\n")[:-5])  # as a kill leaves it
    assert judge(path, judge_of(longer, seen))["asked"] == 1, "one reply was lost"
    assert judge(path, judge_of(longer, seen))["asked"] == 0
    assert judge(path, judge_of(longer, seen), rubric="Judge the spelling.")["asked"] == 6, "another rubric"
    assert judge(path, judge_of(longer, seen, name="other"))["asked"] == 6, "another judge"


def test_what_the_judge_cannot_read_is_unscored_and_asked_again(tmp_path: Path) -> None:
    path = rows(tmp_path / "in.jsonl", "b.")
    found = judge(path, judge_of(lambda text: None if "question 1" in text else longer(text)))
    assert found["unscored"] == {"the conversation with both answers is longer than the judge's context": 1}
    assert judge(path, judge_of(longer))["asked"] == 2


class ChatServer(LocalServer):
    """Chat completions of a judge who likes length."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[str, Any, str | None]] = []

    def answer(self, path: str, content: Any, authorization: str | None) -> tuple[int, str]:
        self.got.append((path, content, authorization))
        reply = longer(content["messages"][-1]["content"])
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": f"Answer {reply}."}}]})


@pytest.fixture
def server() -> Iterator[ChatServer]:
    made = ChatServer()
    with made.running():
        yield made


def test_the_command_asks_a_server_once_and_says_what_is_next(
        tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    path = rows(tmp_path / "in.jsonl", "bbb.")
    command = ["data", "judge", str(path), "--judge", server.url, "--served-as", "big", "--token-env", "JUDGE_TOKEN"]
    assert main(command) == 0
    assert "rlhflab data agreement" in capsys.readouterr().out and (tmp_path / "in.judged.jsonl").is_file()
    assert len(server.got) == 8 and {got[0] for got in server.got} == {"/v1/chat/completions"}
    assert server.got[0][1]["model"] == "big" and server.got[0][1]["temperature"] == 0
    assert {got[2] for got in server.got} == {"Bearer secret"}
    assert main([*command, "--json"]) == 0 and len(server.got) == 8, "a rerun costs nothing"
    found = json.loads(capsys.readouterr().out)
    assert found["asked"] == 0 and "secret" not in json.dumps(found)
    assert not [file for file in (tmp_path / "cache").rglob("*.jsonl") if "secret" in file.read_text()]


def test_a_reply_that_is_no_chat_completion_is_said(tmp_path: Path, server: ChatServer) -> None:
    server.answer = lambda *_: (200, '{"choices": []}')  # type: ignore[method-assign]
    ask = server_ask(server.url, "big", max_new_tokens=4, headers={}, retries=1, wait=0.0)
    with pytest.raises(RunError, match=r"gave no usable verdict in 2 attempts.*not a chat completion"):
        ask([Prompt(id="p", messages=(Message(role="user", content="A or B?"),))])


def test_a_model_that_talks_nonsense_is_refused(tmp_path: Path) -> None:
    judge_here = open_judge("tiny-llama", served_as=None, adapter=None, max_new_tokens=2, token_env=None)
    assert judge_here.name == "judge:tiny-llama"
    with pytest.raises(RunError, match="judge:tiny-llama: gave no verdict that counts on 1 comparisons"):
        judge(rows(tmp_path / "in.jsonl", "b"), judge_here, rubric="Better?")


@pytest.mark.parametrize(("name", "options", "sentence"), [
    ("http://here", {}, "--judge: an address needs --served-as"),
    ("tiny-llama", {"served_as": "x"}, "go with a judge at an address"),
    ("ftp://here", {"served_as": "x"}, "is not an http:// or https:// address"),
    ("http://here", {"served_as": "x", "token_env": "NOT_SET_ANYWHERE"}, "--token-env: the environment variable"),
])
def test_a_judge_that_cannot_be_is_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_judge(name, **{"served_as": None, "adapter": None, "max_new_tokens": 4, "token_env": None, **options})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    comparison = Comparison(prompt=Prompt(id="p", messages=(Message(role="user", content="q"),)), a="x", b="yy")
    before = Judged(comparison=comparison, judgments=(
        Judgment(verdict="b", annotator="anna", reason="why", seconds=3),))
    write_jsonl(tmp_path / "in.jsonl", [judged_row(before)])
    judge(tmp_path / "in.jsonl", judge_of(longer))
    (after,) = read_judged(tmp_path / "out.jsonl")
    assert after.judgments[0] == before.judgments[0] and after.judgments[1].verdict == "b"
