"""The open questions of the paper as runs of the miniature: ``python -m examples.miniature.study NAME|all``."""
