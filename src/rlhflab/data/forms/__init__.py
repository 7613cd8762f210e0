"""The catalogue of data formats: how a row of each looks, what it says, and how one is written.

A format knows rows, never files. Which pairs are made of judgments is not decided here: that is a rule of its own
(`reading.py`).
"""

from rlhflab.data.forms import llama_factory, own, ranked, shared, transcripts
from rlhflab.data.forms.base import Form, Item, data_format, winner

__all__ = ["ORDER", "Form", "Item", "data_format", "in_order", "llama_factory", "own", "ranked", "shared",
           "transcripts", "winner"]

ORDER = ("judged", "shared", "arena", "oasst", "scored", "sharegpt", "alpaca", "hh", "pairs", "trl", "trl_implicit",
         "thumbs", "demonstrations", "prompts")


def in_order() -> dict[str, Form]:
    """Every format, the most telling look first: a row of thumbs has a prompt, too. Third parties' come before all."""
    names = sorted(data_format.names(), key=lambda name: ORDER.index(name) if name in ORDER else -1)
    return {name: data_format.entry(name, where="data format").function() for name in names}
