"""Texts in, batches out: reading, encoding, bucketing and packing, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_files import CHAT, byte_tokenizer, write_jsonl

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset, FinetuneTask
from workers.finetuning.text import Instructions, LabelledTexts, read_instructions, read_labelled_texts
from workers.finetuning.text_batches import language_batch, packed_batch, packs, steps_of_epoch
from workers.finetuning.text_encoding import (
    NO_LOSS,
    Example,
    encode_instructions,
    encode_labelled_texts,
)

PAIRS = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]


def dataset(path: Path, format_: str = "jsonl", **columns: str) -> Dataset:
    return Dataset.model_validate({"uri": str(path), "format": format_, "columns": columns})


def labelled(path: Path, rows: list[dict[str, Any]], classes: list[str] | None = None) -> FinetuneTask:
    return FinetuneTask(kind="classification", dataset=dataset(write_jsonl(path, rows)), classes=classes)


def refusal(error: pytest.ExceptionInfo[InvalidRequest]) -> tuple[str, str, str]:
    [item] = error.value.errors
    return ".".join(map(str, item.loc)), item.code, item.msg


# ----------------------------------------------------------------------------------------- reading


def test_jsonl_with_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"question": one["prompt"], "answer": one["response"], "id": 3} for one in PAIRS]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    path.write_text(path.read_text() + "\n")
    found = read_instructions(dataset(path, prompt="question", response="answer"), "train")
    assert found == Instructions(["a", "c"], ["b", "d"])


def test_a_directory_has_a_file_for_each_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-0.jsonl", PAIRS[:1])
    write_jsonl(tmp_path / "train-1.jsonl", PAIRS[1:])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "x", "response": "y"}])
    assert read_instructions(dataset(tmp_path), "train").prompts == ["a", "c"]
    assert read_instructions(dataset(tmp_path), "test").prompts == ["x"]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "data.parquet")
    assert read_instructions(dataset(tmp_path / "data.parquet", "parquet"), "train").responses == ["b", "d"]


@pytest.mark.parametrize(
    ("content", "loc", "code", "told"),
    [
        ("", "task.dataset.uri", "no_texts", "no rows"),
        ('{"prompt": "a"}', "task.dataset.columns.response", "unknown_column", "line 1"),
        ('{"prompt": "a", "response": "b"}\n{"prompt"', "task.dataset.uri", "malformed_row", "line 2"),
        ('["a", "b"]', "task.dataset.uri", "malformed_row", "line 1"),
        ('{"prompt": "a", "response": null}', "task.dataset.columns.response", "malformed_row", "None"),
        ('{"prompt": 7, "response": "b"}', "task.dataset.columns.prompt", "malformed_row", "'7'"),
        (b"\xff\xfe", "task.dataset.uri", "unreadable_dataset", "UTF-8"),
    ],
)
def test_rows_that_cannot_be_used(
    content: str | bytes, loc: str, code: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InvalidRequest) as error:
        read_instructions(dataset(path), "train")
    assert refusal(error)[:2] == (loc, code)
    assert told in refusal(error)[2]


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "data.parquet")
    with pytest.raises(InvalidRequest) as error:
        read_instructions(dataset(tmp_path / "data.parquet", "parquet"), "train")
    assert refusal(error)[:2] == ("task.dataset.columns.response", "unknown_column")


@pytest.mark.parametrize(
    ("labels", "classes", "known", "expected"),
    [
        (["no", "yes", "no"], None, None, LabelledTexts(("no", "yes"), ["0", "1", "2"], [0, 1, 0])),
        (
            ["no", "yes", "no"],
            ["yes", "no"],
            ["no", "yes"],
            LabelledTexts(("yes", "no"), ["0", "1", "2"], [1, 0, 1]),
        ),
        (["no", "yes", "no"], None, ["yes", "no"], LabelledTexts(("yes", "no"), ["0", "1", "2"], [1, 0, 1])),
        ([0, 1, 1], None, None, LabelledTexts(("0", "1"), ["0", "1", "2"], [0, 1, 1])),
        ([0, 1, 1], ["a", "b"], None, LabelledTexts(("a", "b"), ["0", "1", "2"], [0, 1, 1])),
    ],
)
def test_labels_are_names_or_numbers(
    labels: list[Any],
    classes: list[str] | None,
    known: list[str] | None,
    expected: LabelledTexts,
    tmp_path: Path,
) -> None:
    rows = [{"text": str(row), "label": label} for row, label in enumerate(labels)]
    assert read_labelled_texts(labelled(tmp_path / "data.jsonl", rows, classes), "train", known) == expected


@pytest.mark.parametrize(
    ("labels", "classes", "loc", "code"),
    [
        (["a", "b", "c"], ["a", "b"], "task.classes", "unknown_class"),
        ([0, 1, 2], ["a", "b"], "task.dataset", "label_out_of_range"),
        ([0, -1], None, "task.dataset", "label_out_of_range"),
        ([0, 2], None, "task.dataset", "empty_class"),
        ([0, 10**12], None, "task.dataset", "label_out_of_range"),
        (["a", "b"], ["a", "b", "c"], "task.dataset", "empty_class"),
        (["a", "a"], None, "task.dataset", "too_few_classes"),
        (["a", 1], None, "task.dataset.columns.label", "malformed_row"),
        ([0.5, 1.5], None, "task.dataset.columns.label", "malformed_row"),
        ([None, None], None, "task.dataset.columns.label", "malformed_row"),
        ([True, False], None, "task.dataset.columns.label", "malformed_row"),
    ],
)
def test_labels_that_cannot_be_used(
    labels: list[Any], classes: list[str] | None, loc: str, code: str, tmp_path: Path
) -> None:
    rows = [{"text": "t", "label": label} for label in labels]
    with pytest.raises(InvalidRequest) as error:
        read_labelled_texts(labelled(tmp_path / "data.jsonl", rows, classes), "train", None)
    assert refusal(error)[:2] == (loc, code)


# ---------------------------------------------------------------------------------------- encoding


def shown(tokenizer: Any, example: Example) -> tuple[str, str]:
    """The whole text, and what of it carries loss."""
    wanted = [target for target in example.targets if target != NO_LOSS]
    assert all(
        target in (NO_LOSS, token) for token, target in zip(example.tokens, example.targets, strict=True)
    )
    return tokenizer.decode(example.tokens), tokenizer.decode(wanted)


def test_the_loss_is_on_the_response_and_its_end() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_instructions(tokenizer, Instructions(["2+2="], ["4"]), 64, 259)
    assert shown(tokenizer, encoded.examples[0]) == ("2+2=4</s>", "4</s>")
    assert (encoded.truncated, encoded.dropped) == (0, 0)


def test_a_chat_template_writes_the_turns() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT)
    encoded = encode_instructions(tokenizer, Instructions(["2+2="], ["4"]), 64, 259)
    assert shown(tokenizer, encoded.examples[0]) == ("[user]2+2=[assistant]4</s>", "4</s>")


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages | length }}", "{% if %}"])
def test_chat_templates_that_cannot_be_used(template: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        encode_instructions(byte_tokenizer(chat_template=template), Instructions(["a"], ["b"]), 64, 259)
    assert refusal(error)[:2] == ("base", "chat_template")


def test_the_first_token_carries_no_loss() -> None:
    tokenizer = byte_tokenizer()
    [example] = encode_instructions(tokenizer, Instructions([""], ["ab"]), 64, 259).examples
    assert shown(tokenizer, example) == ("ab</s>", "b</s>")


def test_long_texts_are_cut_and_counted() -> None:
    tokenizer = byte_tokenizer()
    data = Instructions(["ab", "ab", "abcdefgh", "abc"], ["cd", "cdefgh", "x", "d"])
    encoded = encode_instructions(tokenizer, data, 5, 259)
    assert [shown(tokenizer, one)[1] for one in encoded.examples] == ["cd</s>", "cde", "d</s>"]
    assert (encoded.truncated, encoded.dropped) == (2, 1)


def test_prompts_that_leave_no_room(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as error:
        encode_instructions(byte_tokenizer(), Instructions(["abcdef"], ["x"]), 5, 259)
    assert refusal(error)[:2] == ("task.dataset", "no_response")


def test_a_token_out_of_vocabulary() -> None:
    for encode, data in (
        (encode_instructions, Instructions(["a"], ["ÿ"])),
        (encode_labelled_texts, LabelledTexts(("x", "y"), ["ÿ"], [0])),
    ):
        with pytest.raises(InvalidRequest) as error:
            encode(byte_tokenizer(), data, 64, 100)  # type: ignore[operator]
        loc, code, message = refusal(error)
        assert (loc, code) == ("base", "token_out_of_vocabulary")
        assert "100 embeddings" in message


def test_labelled_texts_are_cut_and_counted() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_labelled_texts(tokenizer, LabelledTexts(("x", "y"), ["abcdef", "ab"], [1, 0]), 4, 259)
    assert [tokenizer.decode(one.tokens) for one in encoded.examples] == ["abcd", "ab"]
    assert [one.targets for one in encoded.examples] == [[1], [0]]
    assert encoded.truncated == 1


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InvalidRequest) as error:
        encode_labelled_texts(byte_tokenizer(), LabelledTexts(("x", "y"), ["a", ""], [0, 1]), 4, 259)
    assert "row 1" in refusal(error)[2]


# ----------------------------------------------------------------------------------------- batches


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
)
def test_an_epoch_takes_every_example_once_at_most(lengths: list[int], batch_size: int, seed: int) -> None:
    steps = steps_of_epoch(lengths, batch_size, seed)
    assert len(steps) == max(1, len(lengths) // batch_size)
    assert {len(step) for step in steps} == {min(batch_size, len(lengths))}
    taken = [index for step in steps for index in step]
    assert len(set(taken)) == len(taken)
    assert steps == steps_of_epoch(lengths, batch_size, seed)


def test_steps_are_of_similar_length_and_in_random_order() -> None:
    lengths = torch.randint(1, 1000, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    steps = steps_of_epoch(lengths, 20, 0)
    padded = sum(len(step) * max(lengths[index] for index in step) for step in steps)
    assert padded < 1.1 * sum(lengths)
    longest = [max(lengths[index] for index in step) for step in steps]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    assert steps != steps_of_epoch(lengths, 20, 1)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=100))
def test_packs_hold_every_example_once(lengths: list[int]) -> None:
    found = packs(lengths, 30)
    assert sorted(index for pack in found for index in pack) == list(range(len(lengths)))
    fills = [sum(lengths[index] for index in pack) for pack in found]
    assert max(fills) <= 30
    # Two half-empty packs would have been one.
    assert sum(fill <= 15 for fill in fills) <= 1


def test_padding_is_masked_and_carries_no_loss() -> None:
    batch = language_batch([Example([5, 6, 7], [NO_LOSS, 6, 7]), Example([8, 9], [NO_LOSS, 9])], 2)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["targets"].tolist() == [[NO_LOSS, 6, 7], [NO_LOSS, 9, NO_LOSS]]


def test_positions_start_anew_in_a_pack() -> None:
    first, second = Example([5, 6], [NO_LOSS, 6]), Example([7, 8], [NO_LOSS, 8])
    batch = packed_batch([[first, second], [first]], 2)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]
    assert batch["targets"].tolist() == [[NO_LOSS, 6, NO_LOSS, 8], [NO_LOSS, 6, NO_LOSS, NO_LOSS]]


def test_deeply_nested_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a"})[:-1] + ', "response": ' + "[" * 100_000)
    with pytest.raises(InvalidRequest) as error:
        read_instructions(dataset(tmp_path / "data.jsonl"), "train")
    assert refusal(error)[:2] == ("task.dataset.uri", "malformed_row")
