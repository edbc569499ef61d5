"""``python -m workers.merge RECIPE.yaml``: a merge without a service, on the Ray cluster it finds or a local one."""

from __future__ import annotations

from taumerge.schemas import MergeRequest
from workers.foreground import run_recipe
from workers.merging import run_merge

if __name__ == "__main__":
    run_recipe(MergeRequest, run_merge)
