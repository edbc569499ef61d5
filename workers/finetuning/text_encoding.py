"""From texts to token ids and the targets of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from taumerge.errors import InvalidRequest
from workers.finetuning.text import LOC, Instructions, LabelledTexts

NO_LOSS = -100
"""Target of a token that carries no loss, as torch's cross-entropy knows it."""


@dataclass(frozen=True)
class Example:
    """One text as the model takes it."""

    tokens: list[int]
    targets: list[int]
    """Language modelling: for each token the id that must be predicted for its place, or ``NO_LOSS``; classification:
    the label alone."""


@dataclass(frozen=True)
class Encoded:
    """Examples, and what became of the texts that are too long."""

    examples: list[Example]
    truncated: int = 0
    """Texts that were cut at their end."""
    dropped: int = 0
    """Examples left out because their prompt alone fills the context."""


def encode_instructions(tokenizer: Any, data: Instructions, length: int, vocabulary: int) -> Encoded:
    """Prompts and responses, the loss on the response and the token that ends it.

    Where the tokenizer has a chat template it writes both; else a response follows its prompt as it stands.

    Args:
        length: tokens that an example is cut to.
        vocabulary: number of embeddings of the model.

    Raises:
        InvalidRequest: ``token_out_of_vocabulary``, ``chat_template``, or ``no_response`` when no example keeps one.
    """
    special = tokenizer.chat_template is None
    pairs = zip(data.prompts, data.responses, strict=True)
    written = list(pairs) if special else [_written(tokenizer, *pair) for pair in pairs]
    prompts = _tokens(tokenizer, [prompt for prompt, _ in written], special)
    responses = _tokens(tokenizer, [response for _, response in written], False)
    end = [] if tokenizer.eos_token_id is None or not special else [tokenizer.eos_token_id]
    examples: list[Example] = []
    truncated = 0
    for prompt, response in zip(prompts, responses, strict=True):
        if special and prompt[-1:] == end:  # some tokenizers end every text
            prompt = prompt[:-1]
        response = response + end
        tokens = prompt + response
        truncated += len(tokens) > length
        # Nothing predicts the first token of an example, so it carries no loss.
        start = max(len(prompt), 1)
        if min(len(tokens), length) > start:
            targets = [NO_LOSS] * start + tokens[start:]
            examples.append(Example(tokens[:length], targets[:length]))
    if not examples:
        message = f"no example has room for a response in {length} tokens; raise task.max_length or shorten the prompts"
        raise InvalidRequest.at(LOC, "no_response", message)
    _check_vocabulary(tokenizer, examples, vocabulary)
    return Encoded(examples, truncated, len(prompts) - len(examples))


def encode_labelled_texts(tokenizer: Any, data: LabelledTexts, length: int, vocabulary: int) -> Encoded:
    """Texts with the special tokens that the tokenizer puts around them; raises ``token_out_of_vocabulary``."""
    whole = _tokens(tokenizer, data.texts, True)
    truncated = [index for index, tokens in enumerate(whole) if len(tokens) > length]
    if truncated:  # the tokenizer knows which special tokens must stay
        cut = tokenizer(
            [data.texts[index] for index in truncated], truncation=True, max_length=length, verbose=False
        )["input_ids"]
        for index, tokens in zip(truncated, cut, strict=True):
            whole[index] = tokens
    examples = [Example(tokens, [label]) for tokens, label in zip(whole, data.labels, strict=True)]
    empty = [row for row, example in enumerate(examples) if not example.tokens]
    if empty:
        message = f"the text of row {empty[0]} has no token ({len(empty)} such rows); remove it"
        raise InvalidRequest.at(LOC, "malformed_row", message)
    _check_vocabulary(tokenizer, examples, vocabulary)
    return Encoded(examples, len(truncated))


def _tokens(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    tokens: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return tokens


def _written(tokenizer: Any, prompt: str, response: str) -> tuple[str, str]:
    """Prompt and response as the chat template writes them; the second follows the first without a gap."""
    user = {"role": "user", "content": prompt}
    assistant = {"role": "assistant", "content": response}
    try:
        before = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    except jinja2.TemplateError as error:
        message = f"the chat template of the tokenizer cannot write a prompt and its response: {error}"
        raise InvalidRequest.at(("base",), "chat_template", message) from None
    if not whole.startswith(before):
        message = (
            "the chat template of the tokenizer writes a prompt with its response otherwise than without it"
        )
        raise InvalidRequest.at(("base",), "chat_template", message)
    return before, whole[len(before) :]


def _check_vocabulary(tokenizer: Any, examples: Sequence[Example], vocabulary: int) -> None:
    highest = max(max(example.tokens) for example in examples)
    if highest >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(highest)
        message = (
            f"the tokenizer gives the token {token!r} the id {highest}, and the model has {vocabulary} embeddings; "
            "take the tokenizer that belongs to the model"
        )
        raise InvalidRequest.at(("base",), "token_out_of_vocabulary", message)
