"""Merging rules: pure functions on chunks of task vectors. No Ray, no files."""

from workers.aggregation.registry import build_rule, describe_rules, registered_rules
from workers.aggregation.rule import Contribution, Rule

__all__ = ["Contribution", "Rule", "build_rule", "describe_rules", "registered_rules"]
