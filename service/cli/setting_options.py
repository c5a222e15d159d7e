"""Command line options made from the fields of ``Settings``, which hold name, type, help and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import typer

from service.settings import PREFIX, Settings

Command = TypeVar("Command", bound=Callable[..., None])


def setting_options(names: Iterable[str], *, first: bool = False) -> Callable[[Command], Command]:
    """Give a typer command an option for each of the settings ``names``; the command takes them as ``**overrides``.

    An option that is left out is None. ``load_settings`` checks the values, all together, and its errors name the
    setting. first: list these options before the command's own.
    """

    def add_options(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        command_parameters = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        options = [_parameter(name) for name in names]
        # typer reads the options of a command from its signature.
        parameters = options + command_parameters if first else command_parameters + options
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return add_options


def _parameter(name: str) -> inspect.Parameter:
    """Return the parameter from which typer makes the option of the setting ``name``."""
    field = Settings.model_fields[name]
    default = "unset" if field.default is None else field.default
    option = typer.Option(
        None, f"--{name.replace('_', '-')}", help=f"{field.description}  ({PREFIX}{name.upper()}, default {default})"
    )
    annotation = _option_type(field.annotation) | None
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=option, annotation=annotation)


def _option_type(annotation: Any) -> type[Any]:
    """Return the type of a setting's option: without None, and ``str`` for a ``Literal``."""
    if get_origin(annotation) is Literal:
        return str
    [option_type] = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    return option_type  # type: ignore[no-any-return]
