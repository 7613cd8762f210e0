"""Twenty detectors of reward hacking as pure functions of evidence, and what runs them.

`examine` looks at the latest step, `history` at every one. No files, no model, no printing.
"""

from rlhflab.analysis.detectors import canary, policy, reward, text
from rlhflab.analysis.detectors.base import Unclear, detector
from rlhflab.analysis.detectors.running import Track, as_row, confirmed, examine, gold_free, history

__all__ = ["Track", "Unclear", "as_row", "canary", "confirmed", "detector", "examine", "gold_free", "history", "policy",
           "reward", "text"]
