"""Messages become ids so that training sees exactly what sampling sees."""

import pytest

from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Conversation, Message, Prompt
from rlhflab.errors import ModelError
from rlhflab.model.tiny import byte_tokenizer

ASKED = (Message(role="system", content="Be brief."), Message(role="user", content="Hi"))


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(byte_tokenizer())


def test_the_last_scored_token_is_the_end_of_the_turn_and_not_the_newline_behind_it(chat: ChatFormat) -> None:
    ids = chat.conversation(Conversation(id="c", messages=(*ASKED, Message(role="assistant", content="Hello"))))
    assert chat.tokenizer.decode(ids.ids) == "Hello<|im_end|>"
    assert all(ids.scored) and ids.ids[-1] == chat.end_id == 2


def test_prompt_and_answer_together_are_what_the_template_writes(chat: ChatFormat) -> None:
    prompt = chat.prompt(Prompt(id="p", messages=ASKED))
    assert chat.tokenizer.decode(prompt + chat.answer("Hello")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>")


def test_of_several_turns_only_the_assistants_are_scored(chat: ChatFormat) -> None:
    turns = (*ASKED, Message(role="assistant", content="Hello"), Message(role="user", content="Bye"),
             Message(role="assistant", content="So long"))
    ids = chat.conversation(Conversation(id="c", messages=turns))
    scored = [i for i, counts in zip(ids.ids, ids.scored, strict=True) if counts]
    assert chat.tokenizer.decode(scored) == "Hello<|im_end|>So long<|im_end|>"
    assert chat.tokenizer.decode(ids.prompt + ids.ids) == chat._render(turns, opening=False).removesuffix("\n")


def test_an_answers_text_comes_back_without_its_end(chat: ChatFormat) -> None:
    assert chat.text(chat.answer("8 pm — ok")) == "8 pm — ok"
    assert chat.text(chat.answer("cut off")[:-1]) == "cut off"


def test_sampling_stops_at_the_end_of_a_turn_and_at_the_end_of_text(chat: ChatFormat) -> None:
    assert chat.stop_ids == (0, 2)


def test_the_end_token_comes_from_the_template_and_not_from_a_wrong_eos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|im_start|>"  # what some versions of transformers read from the packaged file
    assert ChatFormat(tokenizer).end_id == 2


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        ChatFormat(tokenizer)
