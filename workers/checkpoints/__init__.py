"""Checkpoints as files: URIs, headers, ranged reads and atomic writing. No Ray, no torch."""
