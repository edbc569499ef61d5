"""Client SDK of taumerge, the model-merging service."""
__version__ = "0.1.0"
