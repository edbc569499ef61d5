"""The words of all captions and prompts, and a tokenizer that knows no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from examples.miniature.drawing import SUBJECTS
from examples.miniature.drawing.picture import INKS, PAPERS

CONTEXT_LENGTH = 12
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[START]", "[END]"


def vocabulary() -> list[str]:
    """Every token, by its number. ``[END]`` is the last: open_clip's text tower pools at the largest number."""
    words = {word for text in _texts() for word in re.findall(r"\w+", text.lower())}
    return [PAD, UNKNOWN, START, *sorted(words), END]


def write_tokenizer(directory: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``: a token a word, of whatever case."""
    tokens = vocabulary()
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, tokens.index(START)), (END, tokens.index(END))],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"pad_token": PAD, "unk_token": UNKNOWN, "bos_token": START, "eos_token": END}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT_LENGTH, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _texts() -> Iterator[str]:
    yield from INKS
    yield from PAPERS
    for subject in SUBJECTS.values():
        yield from subject.classes
        for template in (*subject.templates, *subject.coloured):
            yield template.format("", ink="", paper="")
