"""Task files of requests: plain ones are read; whatever could run code or read elsewhere is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.evaluation.task_files import TaskFileError, read_task_file

PLAIN = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - name: first
    filter: [{function: regex, regex_pattern: "[0-9]+"}, {function: take_first}]
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with the data of the task, beside something secret."""
    (tmp_path / "secret.jsonl").write_text("{}\n")
    directory = tmp_path / "tasks"
    (directory / "data").mkdir(parents=True)
    for name in ("sums.jsonl", "data/more.jsonl"):
        (directory / name).write_text('{"question": "1+1=", "answer": "2"}\n')
    return directory


def write(directory: Path, text: str, name: str = "task.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_a_plain_file_is_read_and_its_data_found_beside_it(directory: Path) -> None:
    fields = read_task_file(write(directory, PLAIN))
    assert fields["task"] == "sums"
    assert fields["dataset_kwargs"]["data_files"] == {"test": str(directory / "sums.jsonl")}
    assert fields["filter_list"][0]["filter"][0]["regex_pattern"] == "[0-9]+"


def test_files_below_are_found_in_each_shape_that_the_harness_takes(directory: Path) -> None:
    files = "{test: [sums.jsonl, ./data/more.jsonl], train: " + str(directory / "sums.jsonl") + "}"
    fields = read_task_file(write(directory, PLAIN.replace("{test: sums.jsonl}", files)))
    assert fields["dataset_kwargs"]["data_files"] == {
        "test": [str(directory / "sums.jsonl"), str(directory / "data/more.jsonl")],
        "train": str(directory / "sums.jsonl"),
    }
    alone = read_task_file(write(directory, PLAIN.replace("{test: sums.jsonl}", "sums.jsonl")))
    assert alone["dataset_kwargs"]["data_files"] == str(directory / "sums.jsonl")


def test_an_included_file_gives_what_the_file_itself_does_not(directory: Path) -> None:
    write(directory / "data", PLAIN.replace("sums.jsonl", "more.jsonl"), "base.yaml")
    fields = read_task_file(write(directory, "include: data/base.yaml\ntask: others\nnum_fewshot: 2\n"))
    assert (fields["task"], fields["num_fewshot"], fields["test_split"]) == ("others", 2, "test")
    assert fields["dataset_kwargs"]["data_files"] == {"test": str(directory / "data/more.jsonl")}
    assert "include" not in fields


def test_a_data_set_of_the_hub_needs_no_local_file(directory: Path) -> None:
    text = PLAIN.replace("dataset_path: json", "dataset_path: openai/gsm8k")
    text = text.replace("{data_files: {test: sums.jsonl}}", "{revision: main}")
    assert read_task_file(write(directory, text))["dataset_path"] == "openai/gsm8k"


UNSAFE = {
    "function": PLAIN + "process_docs: !function utils.process\n",
    "function in a list": PLAIN.replace("metric: exact_match", "metric: !function utils.score"),
    "class": PLAIN + "class: utils.Task\n",
    "prompt source": PLAIN + "use_prompt: promptsource:x\n",
    "own data set": PLAIN + "custom_dataset: os.system\n",
    "code of models": PLAIN + "unsafe_code: true\n",
    "metric that is downloaded and run": PLAIN.replace("exact_match", "code_eval"),
    "metric from a path": PLAIN.replace("exact_match", "/tmp/metric"),
    "the same by its flag": PLAIN.replace("aggregation: mean", "hf_evaluate: true"),
    "generate that runs code": PLAIN.replace("do_sample: false", "custom_generate: /tmp/evil"),
    "generate that trusts code": PLAIN.replace("do_sample: false", "trust_remote_code: true"),
    "data outside": PLAIN.replace("test: sums.jsonl", "test: ../secret.jsonl"),
    "data outside, absolute": PLAIN.replace("test: sums.jsonl", "test: /etc/hostname"),
    "data from elsewhere": PLAIN.replace("test: sums.jsonl", "test: 'http://127.0.0.1/x'"),
    "chained protocols": PLAIN.replace("test: sums.jsonl", "test: 'simplecache::file:///etc/hostname'"),
    "patterns": PLAIN.replace("test: sums.jsonl", "test: '*.jsonl'"),
    "directory": PLAIN.replace("data_files: {test: sums.jsonl}", "data_dir: /etc"),
    "storage options": PLAIN.replace("{data_files", "{storage_options: {}, data_files"),
    "a directory as the data set": PLAIN.replace("dataset_path: json", "dataset_path: /etc"),
    "a relative one": PLAIN.replace("dataset_path: json", "dataset_path: ../tasks"),
    "local files of a data set of the Hub": PLAIN.replace("dataset_path: json", "dataset_path: owner/name"),
    "include outside": "include: ../secret.jsonl\n" + PLAIN,
}


@pytest.mark.parametrize("text", UNSAFE.values(), ids=UNSAFE)
def test_what_needs_the_operator_is_refused_and_says_so(text: str, directory: Path) -> None:
    with pytest.raises(TaskFileError, match="TAUMERGE_ALLOW_CODE_EXECUTION") as refused:
        read_task_file(write(directory, text))
    assert refused.value.code == "unsafe_task"


def test_links_do_not_lead_outside(directory: Path) -> None:
    (directory / "link.jsonl").symlink_to(directory.parent / "secret.jsonl")
    with pytest.raises(TaskFileError, match="not beside") as refused:
        read_task_file(write(directory, PLAIN.replace("sums.jsonl", "link.jsonl")))
    assert refused.value.code == "unsafe_task"


def test_an_included_file_is_held_to_the_same(directory: Path) -> None:
    write(directory, PLAIN + "process_docs: !function utils.process\n", "base.yaml")
    with pytest.raises(TaskFileError, match="!function") as refused:
        read_task_file(write(directory, "include: base.yaml\n"))
    assert refused.value.code == "unsafe_task"


MALFORMED = {
    "no yaml": "task: [",
    "python objects": PLAIN + "metadata: !!python/object/apply:os.getcwd []\n",
    "no mapping": "- task\n",
    "no task": PLAIN.replace("task: sums", "task_alias: sums"),
    "a group": PLAIN.replace("task: sums", "task: [one, two]"),
    "no data": PLAIN.replace("dataset_path: json", ""),
    "no split": PLAIN.replace("test_split: test", ""),
    "absent file": PLAIN.replace("test: sums.jsonl", "test: absent.jsonl"),
    "a number for a file": PLAIN.replace("test: sums.jsonl", "test: 3"),
    "metric without a name": PLAIN.replace("metric: exact_match", "name: exact_match"),
    "options that are none": PLAIN.replace("{data_files: {test: sums.jsonl}}", "sums.jsonl"),
    "includes itself": "include: task.yaml\n" + PLAIN,
    "too large": PLAIN + "#" * 1_000_001,
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_task_is_refused_whoever_allows_what(text: str, directory: Path) -> None:
    with pytest.raises(TaskFileError, match=r"task\.yaml") as refused:
        read_task_file(write(directory, text))
    assert refused.value.code == "malformed_task"


def test_an_absent_file_is_refused(directory: Path) -> None:
    with pytest.raises(TaskFileError, match="cannot be read"):
        read_task_file(directory / "absent.yaml")
