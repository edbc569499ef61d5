"""``python -m workers.finetune RECIPE.yaml``: a fine-tune without a service."""

from __future__ import annotations

from taumerge.schemas import FinetuneRequest
from workers.finetuning import run_finetune
from workers.foreground import run_recipe

if __name__ == "__main__":
    run_recipe(FinetuneRequest, run_finetune)
