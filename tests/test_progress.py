"""Progress where there is no terminal: few lines, true numbers, a last line with the time."""

import io

import pytest

from rlhflab.progress import Progress, columns, in_words


def lines_of(seconds_each, rounds, **numbers):
    """What a loop of `rounds` rounds prints when each takes `seconds_each` by the clock."""
    clock, stream = iter(range(10**6)), io.StringIO()
    with Progress(stream, clock=lambda: next(clock) * seconds_each).track("dpo", rounds) as bar:
        for _ in range(rounds):
            bar.advance(**numbers)
    return stream.getvalue().splitlines()


def test_a_quick_loop_prints_only_its_last_line():
    assert lines_of(0.5, 4, loss=0.6931) == ["dpo: 4/4 in 2.5 s  loss 0.6931"]


def test_a_slow_loop_prints_a_line_every_ten_seconds_with_rate_and_remaining_time():
    lines = lines_of(4.0, 6, loss=None)
    assert lines == ["dpo: 3/6 4 s each, 12 s left  loss -", "dpo: 6/6 in 28 s  loss -"]


def test_a_loop_that_fails_says_how_far_it_came():
    stream = io.StringIO()
    with pytest.raises(ValueError), Progress(stream, clock=lambda: 0.0).track("ppo", 3) as bar:
        bar.advance()
        raise ValueError
    assert stream.getvalue() == "ppo: 1/3 in 0.0 s\n"


def test_text_with_brackets_is_printed_as_it_is():
    stream = io.StringIO()
    Progress(stream).say("kl [0.1, 0.2] :smile: " + "long " * 40)
    assert stream.getvalue() == "kl [0.1, 0.2] :smile: " + "long " * 40 + "\n"


def test_durations_are_in_words():
    assert [in_words(s) for s in (9.94, 59.6, 75, 3700)] == ["9.9 s", "1 min 0 s", "1 min 15 s", "1 h 1 min"]


def test_a_loop_of_unknown_length_says_its_rate_and_no_remaining_time():
    clock, stream = iter(range(0, 100, 4)), io.StringIO()
    with Progress(stream, clock=lambda: next(clock)).track("convert", None) as bar:
        for _ in range(6):
            bar.advance()
    assert stream.getvalue().splitlines() == ["convert: 3 4 s each", "convert: 6 4 s each", "convert: 6 in 28 s"]


def test_columns_stand_under_each_other_and_no_line_ends_in_blanks():
    assert columns([["a", "long", "x"], ["bbb", "b", ""]]) == ["a    long  x", "bbb  b"]
