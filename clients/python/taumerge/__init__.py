"""Client SDK of taumerge, the model-merging service."""
