"""``ray job submit``: the same recipe as a job of a Ray cluster, on a cluster of its own with a dashboard.

It stands in this folder, whose tests run before the shared Ray session starts: two clusters on one machine want the
same port for the agent that takes jobs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import language_files
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
SUBMIT = """
import sys
import time

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

python, *recipes = sys.argv[1:]
context = ray.init(
    address="local", num_cpus=2, num_gpus=1, resources={"accelerator_type:V100": 1},
    include_dashboard=True, dashboard_port=0, log_to_driver=False,
)
client = JobSubmissionClient(f"http://{context.dashboard_url}")
patience = time.monotonic() + 120  # the agent that takes jobs starts after the dashboard


def submit(recipe):
    while True:
        try:
            return client.submit_job(
                entrypoint=f"{python} -m workers.finetune {recipe}",
                runtime_env={"working_dir": ".", "env_vars": {"TAUMERGE_ACCELERATOR_TYPE": "V100"}},
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > patience:
                raise
            time.sleep(1)


for recipe in recipes:
    job = submit(recipe)
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.2)
    print(client.get_job_logs(job))
    if status != JobStatus.SUCCEEDED:
        sys.exit(f"{recipe}: {status}")
"""


def write_recipe(path: Path, base: Path, task: dict[str, Any], **fields: Any) -> Path:
    train = {"steps": 10, "learning_rate": 1e-3, "batch_size": 4, "warmup_steps": 2}
    output = str(path.with_suffix(""))
    path.write_text(json.dumps({"base": str(base), "task": task, "train": train, "output": output} | fields))
    return path


def test_submitted_fine_tunes_run_on_their_v100(tmp_path: Path, tiny_clip: Path, shades: Path) -> None:
    torch.manual_seed(0)
    llama = language_files.save(language_files.llama(), tmp_path / "llama")
    texts = language_files.write_jsonl(
        tmp_path / "texts.jsonl", [{"prompt": f"{number}?", "response": "yes"} for number in range(12)]
    )
    images = {"kind": "clip", "dataset": {"uri": str(shades), "format": "image_folder"}}
    instructions = {"kind": "causal_lm", "dataset": {"uri": str(texts), "format": "jsonl"}}
    lora = {"kind": "lora", "rank": 2}
    recipes = [
        write_recipe(tmp_path / "clip.json", tiny_clip, images),
        write_recipe(tmp_path / "lora.json", llama, instructions, adapter=lora),
    ]
    submitted = subprocess.run(
        [sys.executable, "-c", SUBMIT, sys.executable, *map(str, recipes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert submitted.returncode == 0, (submitted.stdout + submitted.stderr)[-4000:]
    assert submitted.stdout.count("save: 100 % of 10 steps") == 2
    for name, weights in (("clip", "open_clip_model"), ("lora", "adapter_model")):
        assert json.loads((tmp_path / name / "training.json").read_text())["steps"] == 10
        assert load_file(tmp_path / name / f"{weights}.safetensors")
