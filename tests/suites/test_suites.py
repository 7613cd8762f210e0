"""Suites are read with one sentence for each mistake, and those that come along are whole."""

from pathlib import Path

import pytest

from rlhflab.errors import ConfigError, DataError
from rlhflab.suites import read_policy, shipped, suite_named
from rlhflab.suites.suite import Made, made_prompts

GOOD = "name: mine\nprompts: prompts.jsonl\nmetrics:\n  short: {check: {name: max_words, most: 3}}\n  quick: refuses\n"
ROWS = '{"prompt": "Hi", "id": "a"}\n{"prompt": "Ho", "id": "b"}\n'


def folder(path: Path, yaml: str = GOOD, rows: str = ROWS) -> str:
    (path / "suite.yaml").write_text(yaml)
    (path / "prompts.jsonl").write_text(rows)
    return str(path)


def test_a_folder_of_ones_own_is_a_suite(tmp_path: Path) -> None:
    suite = suite_named(folder(tmp_path))
    assert [prompt.id for prompt in suite.prompts] == ["a", "b"] and suite.metric_names == ["short", "quick"]
    assert suite.metrics["short"].check.options == {"most": 3} and suite.metrics["quick"].check.name == "refuses"
    assert len(suite.first(1).prompts) == 1 and suite.answered(samples=2).answers.samples == 2
    with pytest.raises(ConfigError, match="no metric is called 'long'; there are short, quick"):
        suite.better("long")


@pytest.mark.parametrize(("yaml", "sentence"), [
    (GOOD + "colour: red\n", "suite.yaml: colour: unknown key; a suite knows about, answers"),
    (GOOD.replace("most: 3}", "most: 3}, bettr: lower"), "metrics.short: bettr: unknown key; a metric knows better"),
    (GOOD + "answers: {tokens: 3}\n", "answers: tokens: unknown key; a suite's answers knows greedy"),
    (GOOD + "answers: {greedy: false}\n", "answers: greedy is false and samples is 0"),
    (GOOD.partition("metrics")[0], "metrics: is empty"),
    (GOOD + "kind: text\n", "metrics: a suite of kind text measures nats_a_token and takes none"),
    (GOOD.replace("prompts.jsonl", "{scenario: helpdesk, keep: {mood: [good]}}"), "have no fact 'mood'; they have"),
    ("- 1\n", "a suite holds keys and values, found list"),
])
def test_a_mistake_in_a_suite_names_file_and_key(tmp_path: Path, yaml: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        suite_named(folder(tmp_path, yaml))


def test_two_rows_of_one_id_could_not_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two rows have the id 'a'"):
        suite_named(folder(tmp_path, rows=ROWS.replace('"b"', '"a"')))


def test_an_unknown_suite_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"nothing: no such suite; there are brevity, .*helpdesk"):
        suite_named("nothing")


@pytest.mark.parametrize("row", shipped(), ids=lambda row: row["name"])
def test_each_suite_that_comes_along_is_whole(row: dict[str, object]) -> None:
    suite = suite_named(str(row["name"]))
    ids, texts = ({getattr(prompt, key) for prompt in suite.prompts} for key in ("id", "messages"))
    assert len(suite.prompts) == len(ids) == len(texts) >= 16 and suite.about and suite.metric_names == row["metrics"]


def test_a_scenario_makes_only_prompts_with_the_facts_that_are_kept() -> None:
    made = Made(scenario="helpdesk", n=12, keep={"answerable": [False], "demand": ["json", "none"]})
    prompts = made_prompts(made, where="here")
    assert len(prompts) == 12 and {prompt.facts["answerable"] for prompt in prompts} == {False}
    with pytest.raises(ConfigError, match=r"here: 128 prompts of helpdesk hold only 0 with these facts, and 2 are"):
        made_prompts(Made(scenario="helpdesk", n=2, keep={"demand": ["haiku"]}), where="here")


def test_a_pressed_question_stands_behind_its_own_and_names_a_wrong_value() -> None:
    suite = suite_named("sycophancy").first(3)
    plain, pressed = suite.prompts[:2]
    assert len(suite.prompts) == 6 and plain.facts["pair"] == pressed.facts["pair"] == plain.id
    assert pressed.messages[-1].content.startswith(plain.messages[-1].content)
    assert pressed.facts["believed"] in pressed.messages[-1].content
    assert pressed.facts["believed"] != plain.facts["right"]


@pytest.mark.parametrize(("text", "sentence"), [
    ("about: a\n", "rows: is missing or empty; a policy needs at least one row"),
    ("rows: []\n", "rows: is missing or empty"),
    ("rows: [3]\n", "rows.0: a row holds keys and values, found int"),
    ("rows: [{suite: a, metric: b, margin: 1, discordance: 0, marign: 2}]\n", "rows.0: marign: unknown key"),
    ("rows: [{suite: a, metric: b}]\n", "test non_inferior needs a margin"),
    ("rows: [{suite: a, metric: b, margin: 0.1}]\n", "a blocking row needs its discordance"),
    ("rows: [{suite: a, metric: b, margin: 0, blocking: false}]\n", "margin: input should be greater than 0"),
    ("rows: [{suite: a, metric: b, test: exact, margin: 1}]\n", "test exact takes no margin"),
    ("rows: [{suite: a, metric: b, test: exact}, {suite: a, metric: b, test: exact}]\n", "a b exact is there twice"),
    ("colour: red\nrows: [{suite: a, metric: b, test: exact}]\n", "colour: unknown key; a gate policy knows about"),
    ("prompts: {c: 3}\nrows: [{suite: a, metric: b, test: exact}]\n", "prompts.c: no row is of this suite"),
])
def test_a_mistake_in_a_policy_names_file_row_and_key(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path}: .*{sentence}"):
        read_policy(str(path))


def test_a_policy_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such gate policy; .* come along: demo.yaml, gate.yaml"):
        read_policy("none.yaml")
