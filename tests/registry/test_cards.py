"""The card and the log of changes are made from the ledger; what others wrote is text in them."""

from dataclasses import replace

from registry_folders import promote, registry_of
from rlhflab.registry.cards import change_log, differences, model_card, plain
from rlhflab.registry.records import Provenance
from rlhflab.registry.state import history


def test_what_is_not_known_is_said_and_rates_keep_their_interval_and_count(tmp_path):
    registry = registry_of(tmp_path, "one")
    adapter = registry.state().find("one")
    rate = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    made = replace(adapter, made=Provenance(evaluations={"gold": rate, "loss": 1.23456}))
    card = model_card(made, registry.state(), signed=True)
    assert "- Code commit: not known" in card and "- Active in: no deployment" in card
    assert r"- gold: 0.5 \[0.25, 0.75\] n=8" in card and "- loss: 1.235" in card


def test_the_log_tells_who_did_what_and_why(tmp_path):
    registry = registry_of(tmp_path, "one", "two")
    promote(registry, "one")
    promote(registry, "two")
    registry.rollback("prod", by="bob", reason="<b>worse</b>\n# now")
    entries = registry.entries()
    one, two = (registry.state().find(name) for name in ("one", "two"))
    log = change_log(two, history(entries, two))
    assert "anna: added two" in log and "overridden: there is no verdict" in log and "because: a test" in log
    assert f"bob: rolled prod back from {two.digest[:12]} to {one.digest[:12]}" in log
    assert r"because: \<b\>worse\</b\> # now" in log
    assert f"in prod, gave way to {two.digest[:12]}" in change_log(one, history(entries, one))


def test_markup_is_shown_as_it_is_and_long_values_are_cut():
    assert plain("[a](javascript:b) `c` | <d>") == r"\[a\](javascript:b) \`c\` \| \<d\>"
    assert plain("x" * 400) == "x" * 300 + "..." and plain(None) == "not known"


def test_a_difference_names_the_fact_and_both_values(tmp_path):
    one = registry_of(tmp_path, "one").state().find("one")
    other = replace(one, rank=8, made=Provenance(config={"loss": {"beta": 0.1}}))
    assert differences(one, other) == [{"key": "rank", "a": 4, "b": 8},
                                       {"key": "made.config.loss.beta", "a": None, "b": 0.1}]
    assert differences(one, one) == []
