"""What a study draws, asks for, keeps and writes down."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
from miniature_results import diagnosis_of, search_of
from rich.console import Console

from examples.miniature.study.clients import CLASSES, CLIENTS, Kind, Skew, draw_examples
from examples.miniature.study.draws import LORA, TASKS, Draw, draw_trainings, spaced
from examples.miniature.study.laboratory import Finding, Laboratory
from examples.miniature.study.report import BEGIN, END, differences, table, write
from examples.miniature.study.studies import STUDIES, balancing_weights
from taumerge import Client, FinetuneRequest, Job, SearchRequest

# --------------------------------------------------------------------------------------- what is drawn


def test_dials_are_spaced_around_the_demo() -> None:
    assert spaced(4.0, 1, 3) == [4.0, 4.0, 4.0]
    assert spaced(4.0, 16, 3) == pytest.approx([1.0, 4.0, 16.0])


def test_a_dial_turns_one_thing() -> None:
    plain = draw_trainings(3)
    assert {(one.learning_rate, one.steps, one.adapter) for one in plain.values()} == {(5e-4, 120, None)}
    rates = draw_trainings(3, rate_ratio=30)
    learning_rates = [one.learning_rate for one in rates.values()]
    assert max(learning_rates) / min(learning_rates) == pytest.approx(30, rel=0.01)
    assert {one.steps for one in rates.values()} == {120}
    lengths = [one.steps for one in draw_trainings(3, step_ratio=9).values()]
    assert sorted(lengths) == [40, 83, 173, 360]


def test_chance_deals_out_the_same_at_every_level() -> None:
    def order(ratio: float, seed: int) -> list[str]:
        trainings = draw_trainings(seed, rate_ratio=ratio)
        return sorted(TASKS, key=lambda task: trainings[task].learning_rate)

    assert all(order(5, seed) == order(30, seed) for seed in range(5))
    assert len({tuple(order(5, seed)) for seed in range(5)}) > 1


def test_every_model_of_every_seed_is_trained_on_its_own_order() -> None:
    seeds = [one.seed for seed in range(5) for one in draw_trainings(seed).values()]
    assert len(set(seeds)) == len(seeds)


def test_adapters_are_dealt_out() -> None:
    adapters = [one.adapter for one in draw_trainings(0, adapters=[None, None, LORA, LORA]).values()]
    assert adapters.count(None) == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_label_skew_is_the_share_of_own_classes(share: float) -> None:
    skew = Skew("label", share, seed=1)
    own = [top_classes(skew, client) for client in range(CLIENTS)]
    for counts in own:
        two = sum(count for _, count in counts.most_common(2)) / 200
        # of the pictures like everybody's, a quarter is of the two classes
        assert two == pytest.approx(share + (1 - share) / 4, abs=0.13)
    if share == 1:
        assert sorted(label for counts in own for label in counts) == list(range(len(CLASSES)))


def top_classes(skew: Skew, client: int) -> Counter[int]:
    return Counter(label for _, label in draw_examples(skew, client, "train", 200))


@pytest.mark.parametrize("kind", ["label", "style"])
def test_test_pictures_are_not_skewed(kind: Kind) -> None:
    plain, skewed = (
        [(pixels.tobytes(), label) for pixels, label in draw_examples(Skew(kind, share, 1), 2, "test", 20)]
        for share in (0.0, 1.0)
    )
    assert plain == skewed


def test_style_skew_changes_the_pictures_of_a_client() -> None:
    dark = [pixels.mean() for pixels, _ in islice(draw_examples(Skew("style", 1.0, 1), 1, "train", 40), 40)]
    others = [pixels.mean() for pixels, _ in islice(draw_examples(Skew("style", 1.0, 1), 2, "train", 40), 40)]
    assert sum(dark) / 40 < sum(others) / 40 - 50


def test_weights_balance_norms() -> None:
    weights = balancing_weights([1.0, 2.0, 4.0])
    assert sum(weights) == pytest.approx(1)
    assert weights[0] * 1.0 == pytest.approx(weights[1] * 2.0) == pytest.approx(weights[2] * 4.0)


# ------------------------------------------------------------------------------- what is asked and kept


class RecordingClient:
    """Ends every job at once and keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def finetune(self, request: dict[str, Any]) -> Job:
        FinetuneRequest.model_validate(request)
        return self._ended("finetune", request, {"output": request["output"], "trials": [], "seconds": {}})

    def diagnose(self, request: dict[str, Any]) -> Job:
        return self._ended("diagnose", request, diagnosis_of(norms=[1.0] * len(request["models"])))

    def search(self, request: dict[str, Any]) -> Job:
        SearchRequest.model_validate(request)
        return self._ended("search", request, search_of(task_arithmetic=0.5))

    def wait(self, identity: str) -> Job:
        return self._jobs[identity]

    def _ended(self, kind: str, request: dict[str, Any], result: dict[str, Any]) -> Job:
        self.requests.append(request)
        identity = f"{kind}-{len(self.requests)}"
        ended = {"id": identity, "kind": kind, "state": "succeeded", "request": {}, "result": result}
        self._jobs = getattr(self, "_jobs", {}) | {
            identity: Job.model_validate(ended | {"created_at": "2026-01-01T00:00:00Z"})
        }
        return self._jobs[identity]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "open_clip_model.safetensors").write_bytes(b"weights")
    return tmp_path / "base"


def draw_of(base: Path, seed: int = 0) -> Draw:
    recipe = {"dataset": {"uri": "/data", "format": "parquet"}, "classes": ["a", "b"], "templates": ["{}"]}
    return Draw("ratio", "1", seed, base, draw_trainings(seed), dict.fromkeys(TASKS, recipe))


def test_a_job_is_done_once(base: Path, tmp_path: Path) -> None:
    client = RecordingClient()
    laboratory = Laboratory(cast(Client, client), tmp_path / "kept", Console(quiet=True))
    methods: list[dict[str, Any]] = [{"name": "task_arithmetic"}, {"name": "cclip"}]
    for draws in ([draw_of(base)], [draw_of(base), draw_of(base)]):
        findings = laboratory.find(draws, methods)
    assert len(findings) == 2
    assert len(client.requests) == len(TASKS) + 2  # fine-tunes, a diagnosis, a search
    searched = client.requests[-1]
    assert [model["uri"] for model in searched["models"]] == [
        request["output"] for request in client.requests[: len(TASKS)]
    ]
    assert searched["methods"] == [{"name": "task_arithmetic"}, {"name": "cclip", "rho": 1.0}]
    (base / "open_clip_model.safetensors").write_bytes(b"others")
    laboratory.find([draw_of(base)], methods)
    assert len(client.requests) == 2 * (len(TASKS) + 2)


# ---------------------------------------------------------------------------------- what is written down


def finding(base: Path, level: str, seed: int, **rules: float) -> Finding:
    draw = Draw("ratio", level, seed, base, draw_trainings(seed), {})
    diagnosis = diagnosis_of(norms=[1.0, 4.0], chi_square=0.5)
    return Finding(
        draw,
        laboratory_result(diagnosis, "diagnose"),
        laboratory_result(search_of(**rules), "search"),
    )


def laboratory_result(result: dict[str, Any], kind: str) -> Any:
    ended = {"id": kind, "kind": kind, "state": "succeeded", "request": {}, "result": result}
    return Job.model_validate_json(json.dumps(ended | {"created_at": "2026-01-01T00:00:00Z"})).result


def test_the_table_has_paired_differences(base: Path) -> None:
    findings = [
        finding(base, "1", 0, task_arithmetic=0.5, median=0.75),
        finding(base, "1", 1, task_arithmetic=0.25, median=0.25),
        finding(base, "9", 0, task_arithmetic=0.5, median=0.25),
    ]
    study = STUDIES["training"]
    assert differences(study, findings[:2], "median") == [0.25, 0.0]
    first, second = (line.split(" | ") for line in table(study, findings).splitlines()[2:])
    assert first[0:2] == ["| ratio", "1"]
    assert first[2:4] == ["0.500 ± 0.000", "4.000 ± 0.000"]
    assert first[-2:] == ["0.375 ± 0.177", "+0.125 ± 0.177 |"]
    assert second[-2:] == ["0.500", "-0.250 |"]


def test_words_of_the_page_are_kept(base: Path, tmp_path: Path) -> None:
    findings = [finding(base, "1", 0, task_arithmetic=0.5, median=0.75)]
    study = STUDIES["training"]
    write(study, findings, tmp_path / "docs")
    page = tmp_path / "docs" / "training.md"
    page.write_text(f"before\n{page.read_text().partition(BEGIN)[1]}old{END}\nafter\n")
    shown = write(study, findings, tmp_path / "docs")
    assert page.read_text() == f"before\n{BEGIN}\n{shown}\n{END}\nafter\n"
    assert (tmp_path / "docs" / "training.png").read_bytes().startswith(b"\x89PNG")
