"""``python -m workers.diagnose RECIPE.yaml``: a diagnosis without a service."""

from __future__ import annotations

from taumerge.schemas import DiagnoseRequest
from workers.diagnostics import run_diagnose
from workers.foreground import run_recipe

if __name__ == "__main__":
    run_recipe(DiagnoseRequest, run_diagnose)
