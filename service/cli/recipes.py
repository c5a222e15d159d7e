"""Read training recipes: the JSON file that ``frcnn train --recipe`` takes, and that every run writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from model.training.config import TrainingConfig, TrainingError


def read_recipe(file: Path | None, overrides: Mapping[str, Any]) -> TrainingConfig:
    """Return the recipe of a JSON file, with ``overrides`` over its fields, and defaults for the other fields.

    Raises ``TrainingError``, which names the field, where the file cannot be read or is not a recipe.
    """
    source = file or "The options"
    fields: dict[str, Any] = {}
    try:
        if file is not None:
            fields = dict(json.loads(file.read_text(encoding="utf-8")))
            fields.pop("schedule", None)  # a run writes it too, but --schedule sets it
        fields |= overrides
        recipe = TypeAdapter(TrainingConfig).validate_python(fields)
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, detail['loc'])) or 'a recipe'}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors()
        )
        raise TrainingError(f"{source}: {details}.") from error
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{source}: not a recipe: {error}") from error
    if unknown := list(_unknown_names(fields, asdict(recipe))):
        raise TrainingError(f"{source}: a recipe has no {', '.join(unknown)}.")
    return recipe


def _unknown_names(fields: Mapping[str, Any], recipe: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names in ``fields`` that ``recipe`` lacks: for a misspelt one, training would use the default."""
    for name, value in fields.items():
        if name not in recipe:
            yield f"{prefix}{name}"
        elif isinstance(value, Mapping):
            yield from _unknown_names(value, recipe[name] or {}, f"{prefix}{name}.")
