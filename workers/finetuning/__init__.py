"""Fine-tuning on Ray: one training loop for CLIP and language models, with a record for the merge."""
