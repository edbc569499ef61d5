"""Diagnoses: how different the models of one base are, and how differently they were trained."""

from workers.diagnostics.preflight import check_diagnose
from workers.diagnostics.run import run_diagnose

__all__ = ["check_diagnose", "run_diagnose"]
