"""Checks of a data file, by name. Each reads the columns of a survey; none reads a file or a text."""

from rlhflab.analysis.data_checks import copies, labels, lengths, rows, tongues
from rlhflab.analysis.data_checks.base import DataFinding, Example, data_check

__all__ = ["DataFinding", "Example", "copies", "data_check", "labels", "lengths", "rows", "tongues"]
