"""Training recipes in files: the json that ``frcnn train --recipe`` reads, and that every run writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from model.training.config import TrainingConfig, TrainingError


def read_recipe(file: Path | None, given: Mapping[str, Any]) -> TrainingConfig:
    """A recipe from a json of its fields, with what is ``given`` put before it; defaults for what neither has.

    Raises ``TrainingError`` that names the field, where the file cannot be read or holds something else.
    """
    source = file or "The options"
    fields: dict[str, Any] = {}
    try:
        if file is not None:
            fields = dict(json.loads(file.read_text(encoding="utf-8")))
            fields.pop("schedule", None)  # a run writes it beside its recipe; it is an option of its own
        fields |= given
        recipe = TypeAdapter(TrainingConfig).validate_python(fields)
    except ValidationError as error:
        places = (".".join(map(str, one["loc"])) or "a recipe" for one in error.errors())
        said = (one["msg"].removeprefix("Value error, ") for one in error.errors())
        raise TrainingError(f"{source}: {'; '.join(map(': '.join, zip(places, said, strict=True)))}.") from error
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{source}: not a recipe: {error}") from error
    if unknown := list(_unknown(fields, asdict(recipe))):
        raise TrainingError(f"{source}: a recipe has no {', '.join(unknown)}.")
    return recipe


def _unknown(given: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names in ``given`` that ``known`` does not have: a slip of the pen would otherwise train with the default."""
    for name, value in given.items():
        if name not in known:
            yield f"{prefix}{name}"
        elif isinstance(value, Mapping):
            yield from _unknown(value, known[name] or {}, f"{prefix}{name}.")
