"""Read weights/manifest.toml, the list of checkpoints that have a name."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.config import BACKGROUND_NAME


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read or loaded; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class ManifestEntry:
    """One named checkpoint.

    name: what ``FRCNN_WEIGHTS`` and ``Detector.from_checkpoint`` take.
    preset: a name in ``model.presets.PRESETS``.
    file: file name, in the manifest's folder where it is bundled, in the cache folder where it was fetched.
    sha256: hexadecimal; all 64 digits, or the first 8 where only those were published.
    classes: names by class id, background at 0.
    metrics: its quality, in [0, 1], by data set and measure.
    licence: of the weights and of the data that they were trained on, in a sentence.
    source: where it is published, as a member of torchvision's enums (``Enum.MEMBER``); None for a bundled one.
    score_threshold: the detector's default for this checkpoint; None for the preset's.
    description: a sentence for the list of checkpoints.
    path: the file on this machine; None where it has not been fetched.
    """

    name: str
    preset: str
    file: str
    sha256: str
    classes: tuple[str, ...]
    metrics: Mapping[str, float]
    licence: str
    source: str | None
    score_threshold: float | None
    description: str
    path: Path | None


def weights_dir() -> Path:
    """Return the folder of manifest and bundled files: ``FRCNN_WEIGHTS_DIR``, or ``weights/`` beside ``model/``."""
    override = os.environ.get("FRCNN_WEIGHTS_DIR")
    return Path(override).expanduser() if override else Path(__file__).resolve().parents[2] / "weights"


def cache_dir() -> Path:
    """Return the folder of fetched files: ``weights/`` in ``FRCNN_CACHE_DIR``, or in ``frcnn/`` of the user's cache."""
    override = os.environ.get("FRCNN_CACHE_DIR")
    if override:
        return Path(override).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "frcnn" / "weights"


def load_manifest(path: Path | None = None, cache: Path | None = None) -> tuple[ManifestEntry, ...]:
    """Read the entries of the manifest at ``path`` (default: in ``weights_dir()``), in its order.

    cache: the folder of fetched files, ``cache_dir()`` by default. Raises ``CheckpointError`` that names
    the entry and the field that is missing or of another type.
    """
    path = weights_dir() / "manifest.toml" if path is None else path
    cache = cache_dir() if cache is None else cache
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"No manifest of weights at {path}: {error.strerror}. Set FRCNN_WEIGHTS_DIR.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not TOML: {error}.") from error
    lists: Mapping[str, list[str]] = document.get("classes", {})
    entries = tuple(_entry(table, lists, (path.parent, cache), path) for table in document.get("checkpoint", []))
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise CheckpointError(f"{path} has two checkpoints of the name {name!r}.")
    return entries


def with_background(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``classes`` with background at 0, added where the list begins with an object class."""
    return classes if classes[:1] in ((BACKGROUND_NAME,), ("background",)) else (BACKGROUND_NAME, *classes)


def _entry(
    table: Mapping[str, Any], lists: Mapping[str, list[str]], folders: tuple[Path, ...], path: Path
) -> ManifestEntry:
    """Build an entry from its TOML table.

    lists: the manifest's lists of classes by name. folders: where files may lie. path: the manifest's, for errors.
    """

    def field(key: str, *kinds: type, default: object = ...) -> Any:
        value = table.get(key, default)
        if value is ... or (value is not default and not isinstance(value, kinds)):
            types = " or ".join(kind.__name__ for kind in kinds)
            raise CheckpointError(f"{path}: checkpoint {table.get('name', '(unnamed)')!r} needs {key!r}, a {types}.")
        return value

    classes = field("classes", str, list)
    if isinstance(classes, str):
        if classes not in lists:
            raise CheckpointError(
                f"{path}: checkpoint {table['name']!r} names a class list {classes!r} that does not exist."
            )
        classes = lists[classes]
    file = field("file", str)
    if Path(file).name != file:
        raise CheckpointError(f"{path}: checkpoint {table.get('name')!r}: {file!r} must be a bare file name.")
    present = next((folder / file for folder in folders if (folder / file).is_file()), None)
    threshold = field("score_threshold", float, int, default=None)
    return ManifestEntry(
        name=field("name", str),
        preset=field("preset", str),
        file=file,
        sha256=field("sha256", str).lower(),
        classes=with_background(tuple(str(name) for name in classes)),
        metrics=MappingProxyType({key: float(value) for key, value in field("metrics", dict, default={}).items()}),
        licence=field("licence", str),
        source=field("source", str, default=None),
        score_threshold=None if threshold is None else float(threshold),
        description=field("description", str),
        path=present,
    )
