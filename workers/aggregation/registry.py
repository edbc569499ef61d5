"""The registered rules: every subclass of ``Rule`` in ``workers.aggregation.rules``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from pydantic import ValidationError

from taumerge.errors import InvalidRequest
from taumerge.schemas import MethodInfo, MethodSpec
from workers.aggregation import rules
from workers.aggregation.rule import Rule


@cache
def registered_rules() -> dict[str, type[Rule]]:
    """Name → rule, in alphabetical order of the names."""
    found: dict[str, type[Rule]] = {}
    for module_info in pkgutil.iter_modules(rules.__path__):
        module = importlib.import_module(f"{rules.__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Rule) and member.__module__ == module.__name__:
                found[member.name] = member
    return dict(sorted(found.items()))


def build_rule(method: MethodSpec) -> Rule:
    """The rule that ``method`` names, with its parameters validated.

    Raises:
        InvalidRequest: unknown rule, unknown parameter, or a value out of range, at ``method.…``.
    """
    rule = registered_rules().get(method.name)
    if rule is None:
        known = ", ".join(registered_rules())
        raise InvalidRequest.at(
            ["method", "name"], "unknown_method", f"there is no rule {method.name!r}; choose one of {known}"
        )
    try:
        return rule.model_validate(method.parameters)
    except ValidationError as error:
        raise InvalidRequest.from_validation(error, prefix=("method",)) from None


def describe_rules() -> list[MethodInfo]:
    """Every rule as ``GET /methods`` shows it."""
    return [_describe(rule) for rule in registered_rules().values()]


def _describe(rule: type[Rule]) -> MethodInfo:
    summary, _, description = inspect.cleandoc(rule.__doc__ or "").partition("\n\n")
    schema = rule.model_json_schema()
    schema.pop("description", None)
    return MethodInfo(
        name=rule.name,
        summary=summary,
        description=description,
        source=rule.source,
        parameters=schema,
        defaults={
            name: field.default for name, field in rule.model_fields.items() if not field.is_required()
        },
    )
