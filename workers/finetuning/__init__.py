"""Fine-tuning on Ray: one training loop for CLIP and language models, with a record for the merge."""

from workers.finetuning.preflight import check_finetune
from workers.finetuning.run import run_finetune

__all__ = ["check_finetune", "run_finetune"]
