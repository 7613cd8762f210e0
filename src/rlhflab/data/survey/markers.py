"""Control tokens of chat templates, and turns of a transcript, that stand in a text as if somebody had written them.

A tokenizer makes the first into the control token itself, so an answer that holds its end token ends there. The second
are turns that were never split. What the model at hand calls a control token is up to the caller.
"""

import re
from collections.abc import Iterable

KNOWN = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
         "<|begin_of_text|>", "<|end_of_text|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>", "<|eom_id|>",
         "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]", "[/INST]", "<<SYS>>",
         "<</SYS>>", "<s>", "</s>")
"""Of the common templates."""
TRANSCRIPT = re.compile(r"^[ \t]*(?:Human|Assistant|User|AI|### ?(?:Human|Assistant|Instruction|Response)):",
                        re.MULTILINE)


class Markers:
    """Looks for `KNOWN` control tokens and those of one model."""

    def __init__(self, own: Iterable[str] = ()) -> None:
        """`own`: control tokens of the model that the data is for."""
        tokens = sorted({*KNOWN, *own}, key=len, reverse=True)
        self._first = tuple(sorted({token[0] for token in tokens}))
        self._pattern = re.compile("|".join(map(re.escape, tokens)))

    def tokens(self, text: str) -> set[str]:
        """The control tokens that `text` spells out."""
        return set(self._pattern.findall(text)) if any(first in text for first in self._first) else set()

    def turns(self, text: str) -> bool:
        """Whether lines of `text` open like turns of a transcript, with two speakers at least."""
        return ":" in text and len({found.strip() for found in TRANSCRIPT.findall(text)}) > 1
