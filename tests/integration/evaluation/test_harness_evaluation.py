"""Tasks of lm-evaluation-harness: the scores are those of a merged directory that the harness itself loads."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_files import gpt2, llama, save, write_jsonl
from merged_files import put, write_merged

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: install taumerge-server[eval]")

import lm_eval
from lm_eval.api.registry import metric_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from taumerge.errors import InvalidRequest, JobFailed
from taumerge.schemas import EvaluationSpec
from workers.evaluation import Evaluator, build_evaluator
from workers.evaluation.task_files import METRICS
from workers.hardware import Hardware

CHOICES = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["0", "1", "2"]
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WRITTEN = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{'e' if answer == 0 else ''}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: true, temperature: 1.5}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(.)", group_select: 0}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["[^a-zA-Z0-9]"]}
"""
COUNT = 120


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(llama(), tmp_path_factory.mktemp("base") / "llama", dtype=torch.bfloat16)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory of task files with their data."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    draw = random.Random(0)
    pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(COUNT)]
    write_jsonl(directory / "sums.jsonl", [{"question": f"{a}+{b}", "answer": (a + b) % 3} for a, b in pairs])
    (directory / "sums.yaml").write_text(CHOICES)
    (directory / "letters.yaml").write_text(WRITTEN)
    return directory


def spec_of(name: Path | str, **task: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate(
        {"kind": "lm_eval", "tasks": {"one": {"name": str(name), **task}}, "batch_size": 8}
    )


def build(base: Path, spec: EvaluationSpec, cpu: Hardware, *, code_allowed: bool = False) -> Evaluator:
    return build_evaluator(str(base), spec, ["one"], cpu, code_allowed=code_allowed)


def halves() -> tuple[list[int], list[int]]:
    """METHODS: 5 % drawn with a fixed seed are validation data, the others test data."""
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).tolist()
    return sorted(order[: COUNT // 20]), sorted(order[COUNT // 20 :])


def plain_results(directory: Path, tasks: Path, name: str, samples: list[int]) -> dict[str, float]:
    """What somebody gets who gives the merged directory to the harness."""
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(directory), dtype="float32", device="cpu", batch_size=8),
        tasks=[name],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        samples={name: samples},
        bootstrap_iters=0,
    )
    results: dict[str, float] = found["results"][name]
    return results


@pytest.mark.parametrize(
    ("name", "metric", "key"),
    [
        ("sums", None, "acc,none"),
        ("sums", "acc_norm", "acc_norm,none"),
        ("letters", None, "exact_match,first"),
        ("letters", "exact_match,whole", "exact_match,whole"),
    ],
)
def test_scores_are_those_of_the_harness_on_the_merged_directory(
    name: str,
    metric: str | None,
    key: str,
    base: Path,
    tasks: Path,
    cpu: Hardware,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluator = build(base, spec_of(tasks / f"{name}.yaml", metric=metric), cpu)
    validation, test = halves()
    assert len(validation) == 6
    merged = write_merged(base, tmp_path / "merged", 1.5)
    put(evaluator, merged)
    found = [evaluator.evaluate("one", split) for split in ("validation", "test", "validation", "test")]
    assert 0.1 < found[1] < 0.9
    monkeypatch.chdir(tasks)  # where the harness looks for relative data files
    assert found == [plain_results(merged, tasks, name, part)[key] for part in (validation, test)] * 2


def test_the_first_metric_is_that_of_the_task_whatever_the_harness_computes_first(
    base: Path, tasks: Path, cpu: Hardware
) -> None:
    (tasks / "sums.yaml").write_text(
        CHOICES.partition("output_type")[0]
        + "output_type: loglikelihood\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        + "metric_list: [{metric: acc}, {metric: perplexity}]\n"
    )
    scores = [
        build(base, spec_of(tasks / "sums.yaml", metric=metric), cpu).evaluate("one", "test")
        for metric in (None, "acc")
    ]
    assert scores[0] == scores[1] <= 1


def test_other_parameters_have_other_scores(base: Path, tasks: Path, cpu: Hardware, tmp_path: Path) -> None:
    evaluator = build(base, spec_of(tasks / "sums.yaml"), cpu)
    seen = {evaluator.evaluate("one", "test")}
    for scaling in (1.0, 3.0):
        put(evaluator, write_merged(base, tmp_path / str(scaling), scaling))
        seen.add(evaluator.evaluate("one", "test"))
    assert len(seen) == 3


def test_tied_weights_go_by_their_stored_name(tasks: Path, cpu: Hardware, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = save(gpt2(), tmp_path / "gpt2")
    evaluator = build(tied, spec_of(tasks / "sums.yaml"), cpu)
    assert "lm_head.weight" not in evaluator.parameters
    merged = write_merged(tied, tmp_path / "merged", 2.0)
    put(evaluator, merged)
    again = build(merged, spec_of(tasks / "sums.yaml"), cpu)
    assert evaluator.evaluate("one", "test") == again.evaluate("one", "test")


def test_limit_and_worked_examples_are_those_of_the_request(base: Path, tasks: Path, cpu: Hardware) -> None:
    prompts: list[str] = []
    evaluator = build(base, spec_of(tasks / "sums.yaml", limit=5, num_fewshot=1), cpu)
    model = evaluator._model  # type: ignore[attr-defined]
    answer = model.loglikelihood
    model.loglikelihood = lambda requests: prompts.extend(one.args[0] for one in requests) or answer(requests)
    evaluator.evaluate("one", "test")
    assert {prompt.count("+") for prompt in prompts} == {2}
    questions = [json.loads(line)["question"] for line in (tasks / "sums.jsonl").read_text().splitlines()]
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0)).tolist()[COUNT // 20 :]
    kept = [questions[index] for index in order[:5]]
    assert sorted(prompt.rpartition("\n")[2] for prompt in prompts) == sorted(kept * 3)


def test_a_score_has_no_gradient(base: Path, tasks: Path, cpu: Hardware) -> None:
    evaluator = build(base, spec_of(tasks / "sums.yaml"), cpu)
    with pytest.raises(JobFailed, match="no gradient") as failed:
        next(iter(evaluator.losses("one", "validation")))
    assert failed.value.code == "no_gradients"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(torch.OutOfMemoryError("CUDA"), torch.OutOfMemoryError), (KeyError("x"), JobFailed)],
)
def test_a_lack_of_memory_is_no_fault_of_the_task(
    error: Exception,
    raised: type[Exception],
    base: Path,
    tasks: Path,
    cpu: Hardware,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    evaluator = build(base, spec_of(tasks / "sums.yaml"), cpu)
    monkeypatch.setattr(lm_eval, "evaluate", fail)
    with pytest.raises(raised):
        evaluator.evaluate("one", "test")


def refusal(base: Path, spec: EvaluationSpec, cpu: Hardware) -> tuple[tuple[str | int, ...], str, str]:
    with pytest.raises(InvalidRequest) as refused:
        build(base, spec, cpu)
    (item,) = refused.value.errors
    return item.loc, item.code, item.msg


def test_what_cannot_be_scored_is_refused_before_the_first_evaluation(
    base: Path, tasks: Path, cpu: Hardware
) -> None:
    name, metric = (("evaluation", "tasks", "one", field) for field in ("name", "metric"))
    place, code, message = refusal(base, spec_of(tasks / "sums.yaml", metric="exact_match"), cpu)
    assert (place, code) == (metric, "unknown_metric")
    assert "acc, acc_norm" in message
    rolling = tasks / "rolling.yaml"
    rolling.write_text(
        CHOICES.partition("output_type")[0]
        + "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
        + "metric_list: [{metric: word_perplexity}]\n"
    )
    assert refusal(base, spec_of(rolling), cpu)[:2] == (metric, "unsuitable_metric")
    (tasks / "sums.yaml").write_text(CHOICES.replace("{{question}}", "{{absent}}"))
    place, code, message = refusal(base, spec_of(tasks / "sums.yaml"), cpu)
    assert (place, code) == (name, "task_unloadable")
    assert "absent" in message
    write_jsonl(tasks / "sums.jsonl", [{"question": "1", "answer": 1}])
    (tasks / "sums.yaml").write_text(CHOICES)
    assert refusal(base, spec_of(tasks / "sums.yaml"), cpu)[1] == "no_evaluation_data"


def test_templates_see_nothing_but_their_document(
    base: Path, tasks: Path, cpu: Hardware, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    attack = f"{{{{ cycler.__init__.__globals__.os.mknod('{witness}') }}}}"
    (tasks / "sums.yaml").write_text(CHOICES.replace("{{question}}", attack))
    assert refusal(base, spec_of(tasks / "sums.yaml"), cpu)[1] == "task_unloadable"
    assert not witness.exists()


def test_code_beside_a_task_runs_only_where_the_operator_allows_it(
    base: Path, tasks: Path, cpu: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    witness = tmp_path / "witness"
    (tasks / "marks.py").write_text(
        f"open({str(witness)!r}, 'w').close()\n"
        "def marks(doc, results):\n"
        "    return {'good': float(doc['answer'] == 0)}\n"
    )
    (tasks / "sums.yaml").write_text(
        CHOICES.partition("metric_list")[0]
        + "unsafe_code: true\nprocess_results: !function marks.marks\n"
        + "metric_list: [{metric: good, aggregation: mean, higher_is_better: true}]\n"
    )
    assert refusal(base, spec_of(tasks / "sums.yaml"), cpu)[1] == "unsafe_task"
    assert not witness.exists()
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
    evaluator = build(base, spec_of(tasks / "sums.yaml"), cpu, code_allowed=True)
    assert witness.exists()
    rows = (tasks / "sums.jsonl").read_text().splitlines()
    zeros = [index for index in halves()[1] if '"answer": 0' in rows[index]]
    assert evaluator.evaluate("one", "test") == pytest.approx(len(zeros) / len(halves()[1]))


GROUP = """
group: both
task: [sums, twice]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""


@pytest.fixture
def harness_knows(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets the harness's own tasks be those in a directory, so that their index is read in no time."""

    def know(directory: Path) -> None:
        manager = TaskManager(include_path=str(directory), include_defaults=False)
        monkeypatch.setattr("workers.evaluation.harness_tasks.task_manager", lambda: manager)
        monkeypatch.chdir(tasks)

    return know


def test_a_group_of_the_harness_has_the_score_that_the_harness_gives_it(
    base: Path, tasks: Path, cpu: Hardware, harness_knows: Callable[[Path], None]
) -> None:
    (tasks / "sums.yaml").write_text(CHOICES + "tag: tagged\n")
    write_jsonl(tasks / "more.jsonl", [{"question": f"{n}+{n}", "answer": 2 * n % 3} for n in range(40)])
    twice = CHOICES.replace("task: sums", "task: twice").replace("sums.jsonl", "more.jsonl")
    (tasks / "twice.yaml").write_text(twice + "tag: tagged\n")
    (tasks / "group.yaml").write_text(GROUP)
    harness_knows(tasks)
    evaluator = build(base, spec_of("both"), cpu)
    alone = [build(base, spec_of(name), cpu).evaluate("one", "test") for name in ("sums", "twice")]
    assert evaluator.evaluate("one", "test") == pytest.approx((alone[0] * 114 + alone[1] * 38) / 152)
    place, code, message = refusal(base, spec_of("tagged"), cpu)
    assert (place, code) == (("evaluation", "tasks", "one", "name"), "several_tasks")
    assert "sums, twice" in message
    place, code, message = refusal(base, spec_of("sumz"), cpu)
    assert (code, "there is sums" in message) == ("unknown_task", True)


def test_tasks_that_run_code_of_models_are_the_operators_to_allow(
    base: Path, cpu: Hardware, harness_knows: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    harness_knows(Path(lm_eval.__file__).parent / "tasks" / "humaneval")
    place, code, message = refusal(base, spec_of("humaneval"), cpu)
    assert (place, code) == (("evaluation", "tasks", "one", "name"), "unsafe_task")
    assert "TAUMERGE_ALLOW_CODE_EXECUTION" in message
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_metrics_that_task_files_may_name_are_the_harness_own() -> None:
    assert {name for name in METRICS if name not in metric_registry} == set()
