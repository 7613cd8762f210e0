"""A sample as a row, and back."""

import json

from rlhflab.analysis.evidence import Sample, row_of, sample_of

SAMPLE = Sample(step=3, prompt_id="p", prompt="Hi?", answer="At 8 pm.", reward=0.0, stopped=False, tokens=4,
                logprob=-2.5, members=(0.5, -0.5), terms={"words": 1.0}, measures={"gold": 0.5, "right": None})


def test_a_sample_is_read_back_from_its_row() -> None:
    assert sample_of(json.loads(json.dumps(row_of(SAMPLE)))) == SAMPLE


def test_what_is_empty_is_left_out_but_zero_and_false_are_said() -> None:
    assert set(row_of(SAMPLE)) == {"step", "prompt_id", "prompt", "answer", "reward", "stopped", "tokens", "logprob",
                                   "members", "terms", "measures"}
    silent = Sample(step=0, prompt_id="p", answer="")
    assert row_of(silent) == {"step": 0, "prompt_id": "p", "answer": ""} and sample_of(row_of(silent)) == silent
