"""Messages to token ids. Knows a tokenizer and its chat template; no tensors, no model.

A prompt's ids are exactly what the sampler sees, an answer's ids are the answer and its end-of-turn token, and the
two are tokenised apart, so that training and sampling never disagree about a boundary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhflab.data.types import Conversation, Message, Prompt
from rlhflab.errors import DataError, ModelError

EXTRA_STOPS = ("<|endoftext|>", "</s>", "<|eot_id|>", "<|end_of_text|>")
"""Ends of text that a model may write instead of its end of turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredIds:
    """The tokens after a conversation's prompt; only the assistant's are scored."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    scored: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacts:
    """What a tokenizer says about ends."""

    turn_end: str
    """The token that ends the assistant's turn."""
    written: bool
    """The template writes it; else it is the tokenizer's end of sequence, put there by the lab."""
    eos: str | None
    pad: str | None


class ChatFormat:
    """One tokenizer's way to write a conversation."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise ModelError("the tokenizer has no chat template; use an instruct model or add one to its folder")
        self.turn_end: str = self._turn_end()
        self.end_id: int = self._ids(self.turn_end)[0]
        """The token that ends the assistant's turn: the last scored one, and the one that stops sampling."""
        known = set(tokenizer.get_vocab())
        extra = {tokenizer.convert_tokens_to_ids(token) for token in EXTRA_STOPS if token in known}
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.end_id} | extra))

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of the turns so far and of the opening of the assistant's turn."""
        return tuple(self._ids(self.opened(prompt.messages)))

    def opened(self, messages: Sequence[Message]) -> str:
        """The turns so far and the opening of the assistant's turn, as the template writes them."""
        return self._render(messages, opening=True)

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer that ends by itself: the text and the end-of-turn token."""
        return (*self._ids(text), self.end_id)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has, many texts at once where the tokenizer can."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is None:
            return [len(self._ids(text)) for text in texts]
        fast.no_truncation()
        fast.no_padding()
        return [len(encoded) for encoded in fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    @property
    def facts(self) -> ChatFacts:
        """What it says about ends."""
        tokenizer = self.tokenizer
        return ChatFacts(turn_end=self.turn_end, written=self._written_end() is not None, eos=tokenizer.eos_token,
                         pad=tokenizer.pad_token)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that the tokenizer makes into one special token, wherever they stand."""
        return tuple(sorted(str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special))

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text without the token that ended it."""
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def conversation(self, conversation: Conversation) -> ScoredIds:
        """Every assistant turn with its end token is scored; the turns between are read but not scored."""
        first = next(i for i, message in enumerate(conversation.messages) if message.role == "assistant")
        prompt = self._ids(self._render(conversation.messages[:first], opening=True))
        ids: list[int] = []
        scored: list[bool] = []
        for i, message in enumerate(conversation.messages[first:], start=first):
            if message.role != "assistant":
                continue
            answer = self.answer(message.content)
            ids += answer
            scored += [True] * len(answer)
            later = (j for j, turn in enumerate(conversation.messages) if j > i and turn.role == "assistant")
            following = next(later, None)
            if following is not None:
                between = self._ids(self._between(conversation.messages, i, following))
                ids += between
                scored += [False] * len(between)
        return ScoredIds(prompt=tuple(prompt), ids=tuple(ids), scored=tuple(scored))

    def _between(self, messages: Sequence[Message], answer: int, following: int) -> str:
        """What the template writes from behind the end token of turn `answer` to the start of turn `following`."""
        before = self._render(messages[:answer], opening=True) + messages[answer].content
        after = self._render(messages[:following], opening=True)
        if not after.startswith(before):
            raise DataError("the chat template rewrites earlier turns; split such conversations into single answers")
        return after[len(before):].removeprefix(self.turn_end)

    def _turn_end(self) -> str:
        """The token that the template puts behind an assistant's words, else the tokenizer's end of sequence."""
        written = self._written_end()
        if written is not None:
            return written
        if self.tokenizer.eos_token is None:
            raise ModelError("the tokenizer has no end-of-turn token, so answers could never end")
        return str(self.tokenizer.eos_token)

    def _written_end(self) -> str | None:
        asked, said = Message(role="user", content="question"), Message(role="assistant", content="reply")
        opened = self._render([asked], opening=True)
        whole = self._render([asked, said], opening=False)
        tail = whole[len(opened) + len(said.content):] if whole.startswith(opened + said.content) else ""
        ids = self._ids(tail)
        return str(self.tokenizer.convert_ids_to_tokens(ids[0])) if ids and self._is_special(ids[0]) else None

    def _is_special(self, token: int) -> bool:
        return token in self.tokenizer.added_tokens_decoder

    def _render(self, messages: Sequence[Message], *, opening: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        rendered: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opening)
        return rendered

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids
