"""``ray job submit``: the same recipe as a job of a Ray cluster, on a cluster of its own with a dashboard.

It stands in this folder, whose tests run before the shared Ray session starts: two clusters on one machine want the
same port for the agent that takes jobs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import PIL.Image
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[3]
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SUBMIT = """
import sys
import time

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

python, recipe = sys.argv[1:]
context = ray.init(
    address="local", num_cpus=2, num_gpus=1, resources={"accelerator_type:V100": 1},
    include_dashboard=True, dashboard_port=0, log_to_driver=False,
)
client = JobSubmissionClient(f"http://{context.dashboard_url}")
patience = time.monotonic() + 60  # the agent that takes jobs starts after the dashboard
while True:
    try:
        job = client.submit_job(
            entrypoint=f"{python} -m workers.finetune {recipe}",
            runtime_env={"env_vars": {"TAUMERGE_ACCELERATOR_TYPE": "V100"}},
        )
        break
    except RuntimeError as error:
        if "No available agent" not in str(error) or time.monotonic() > patience:
            raise
        time.sleep(1)
while not (status := client.get_job_status(job)).is_terminal():
    time.sleep(0.5)
print(client.get_job_logs(job))
sys.exit(status != JobStatus.SUCCEEDED)
"""


def test_a_submitted_fine_tune_runs_on_its_v100(tmp_path: Path) -> None:
    base, data = tmp_path / "base", tmp_path / "data"
    base.mkdir()
    (base / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{base}", load_weights=False)
    save_file(model.state_dict(), base / "open_clip_model.safetensors")
    for name, shade in (("dark", 30), ("light", 220)):
        (data / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((32, 32, 3), shade + index, np.uint8)
            PIL.Image.fromarray(pixels).save(data / name / f"{index}.png")
    recipe = {
        "base": str(base),
        "task": {"kind": "clip", "dataset": {"uri": str(data), "format": "image_folder"}},
        "train": {"steps": 10, "learning_rate": 1e-3, "batch_size": 4, "warmup_steps": 2},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    submitted = subprocess.run(
        [sys.executable, "-c", SUBMIT, sys.executable, str(tmp_path / "recipe.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert submitted.returncode == 0, (submitted.stdout + submitted.stderr)[-4000:]
    assert "save: 100 % of 10 steps" in submitted.stdout
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 10
