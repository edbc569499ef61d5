"""Scores of merged models: zero-shot CLIP, sequence classification, lm-evaluation-harness. Knows no Ray."""

from workers.evaluation.evaluator import Evaluator, build_evaluator
from workers.evaluation.preflight import check_evaluation, places
from workers.evaluation.scores import normalised
from workers.evaluation.splits import overlap

__all__ = ["Evaluator", "build_evaluator", "check_evaluation", "normalised", "overlap", "places"]
