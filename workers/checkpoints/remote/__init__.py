"""Checkpoints in object stores and on web servers: addresses, pinned ranged reads, uploads. No Ray, no torch."""
