"""Resolve a checkpoint's name or path, read its state dict, and write one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from model.checkpoint.manifest import CheckpointError, ManifestEntry, load_manifest, with_background

# Preset, classes and metrics are one JSON value under this key: safetensors keeps its metadata in a hash map, and a map
# of one key is written the same way every time, so that equal weights give equal files.
_METADATA_KEY = "frcnn"
_HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A checkpoint on this machine, with what is known about it before its tensors are read.

    name: the manifest's, or the file's without its ending. preset: None where neither manifest nor file says it
    (``identify_preset`` may tell from the keys). classes: names by class id, background at 0. sha256: of the file, all
    digits or the first ones; None for a file outside the manifest. metrics: in [0, 1]. score_threshold: None for the
    preset's.
    """

    name: str
    path: Path
    preset: str | None
    classes: tuple[str, ...]
    sha256: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    score_threshold: float | None = None
    licence: str | None = None


def resolve(
    source: str | os.PathLike[str], *, manifest: Path | None = None, cache: Path | None = None
) -> ResolvedCheckpoint:
    """Find the checkpoint that ``source`` means: a name of the manifest, or the path of a .safetensors or .pth file.

    The classes of a file outside the manifest come from its safetensors metadata, or from ``FILE.classes.txt`` (a name
    a line) or ``FILE.classes.json`` (a list) beside it, FILE with or without its ending; background need not be listed.
    Raises ``CheckpointError`` where there is no such name or file, or the classes are not stated anywhere.
    """
    entries = load_manifest(manifest, cache)
    for entry in entries:
        if entry.name == os.fspath(source):
            return _resolve_entry(entry, _require_file(entry))
    path = Path(source).expanduser()
    if not path.is_file():
        names = ", ".join(entry.name for entry in entries)
        raise CheckpointError(f"No checkpoint {os.fspath(source)!r}: it is neither a file nor one of {names}.")
    for entry in entries:
        if entry.file == path.name and sha256(path).startswith(entry.sha256):
            return _resolve_entry(entry, path)  # a published file that was copied somewhere by hand
    metadata = _read_metadata(path) if _is_safetensors(path) else {}
    class_names = metadata.get("classes")
    classes = tuple(map(str, class_names)) if isinstance(class_names, list) else _read_class_file(path)
    preset, metrics = metadata.get("preset"), metadata.get("metrics")
    return ResolvedCheckpoint(
        name=path.stem,
        path=path,
        preset=preset if isinstance(preset, str) else None,
        classes=with_background(classes),
        metrics=metrics if isinstance(metrics, dict) else {},
    )


def read_state(checkpoint: ResolvedCheckpoint | Path) -> dict[str, Tensor]:
    """Read a state dict to the CPU, every floating tensor as float32 (files may hold float16 or bfloat16).

    A path reads any file of weights; a ``ResolvedCheckpoint`` of the manifest must also have the manifest's hash. A
    training checkpoint's ``model`` or ``state_dict`` is taken out of it. Raises ``CheckpointError`` for a file that is
    truncated, is no checkpoint, would run code, or has another hash.
    """
    if isinstance(checkpoint, ResolvedCheckpoint):
        path = checkpoint.path
        if checkpoint.sha256 is not None:
            _check_hash(path, checkpoint.sha256, checkpoint.name)
    else:
        path = checkpoint
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}.")
    state = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def save(
    path: Path, state: Mapping[str, Tensor], *, preset: str, classes: tuple[str, ...], metrics: Mapping[str, float]
) -> str:
    """Write weights as safetensors with their preset, classes and metrics, whole or not at all; return the SHA-256.

    Kernels and matrices are stored as float16 unless a value would overflow. Vectors (norms' statistics, biases) are
    small and stay float32: float16 has hardly a digit for a running variance of 1e-6. Counters of batches are left out.
    The same tensors always give the same bytes. Raises ``CheckpointError`` where a value is not finite.
    """
    tensors = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        value = value.detach().cpu().contiguous()
        if value.is_floating_point():
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{key} is not finite: training has diverged, and {path} was not written.")
            fits = value.dim() > 1 and float(value.abs().max() if value.numel() else 0) <= _HALF_MAX
            value = value.to(torch.float16 if fits else torch.float32)
        # Copied because safetensors refuses tensors that share storage.
        tensors[key] = value.clone()
    metadata = {"preset": preset, "classes": list(with_background(classes)), "metrics": dict(metrics)}
    data = safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates it readable by its owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return hashlib.sha256(data).hexdigest()


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(entry: ManifestEntry) -> Path:
    """Check the hash of the entry's file and return its path; raise ``CheckpointError`` for a missing or other file."""
    path = _require_file(entry)
    _check_hash(path, entry.sha256, entry.name)
    return path


def _require_file(entry: ManifestEntry) -> Path:
    """Return the path of the entry's file; raise ``CheckpointError`` where it is not on this machine."""
    if entry.path is None:
        remedy = f"Fetch it: frcnn weights fetch {entry.name}." if entry.source else "It should be in the repository."
        raise CheckpointError(f"The file of {entry.name!r}, {entry.file}, is not on this machine. {remedy}")
    return entry.path


def _resolve_entry(entry: ManifestEntry, path: Path) -> ResolvedCheckpoint:
    """Return the manifest's entry with its file at ``path``."""
    return ResolvedCheckpoint(
        name=entry.name,
        path=path,
        preset=entry.preset,
        classes=entry.classes,
        sha256=entry.sha256,
        metrics=entry.metrics,
        score_threshold=entry.score_threshold,
        licence=entry.licence,
    )


def _check_hash(path: Path, expected: str, name: str) -> None:
    """Raise ``CheckpointError`` unless the file's SHA-256 begins with ``expected``."""
    digest = sha256(path)
    if not digest.startswith(expected):
        raise CheckpointError(
            f"{path} is not {name!r}: its SHA-256 is {digest}, the manifest says {expected}. "
            "It is damaged or was changed; delete it and fetch or check it out again."
        )


def _is_safetensors(path: Path) -> bool:
    """Tell by the content, since names can be wrong: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_metadata(path: Path) -> dict[str, object]:
    """Read preset, classes and metrics of a safetensors file, as ``save`` writes them; empty without any."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a damaged or truncated safetensors file: {error}.") from error
    return metadata if isinstance(metadata, dict) else {}


def _read_class_file(path: Path) -> tuple[str, ...]:
    """Read the class names from a file beside ``path``; raise ``CheckpointError`` where that is missing or wrong."""
    for stem in (path.name, path.stem):
        for ending in ("txt", "json"):
            class_file = path.with_name(f"{stem}.classes.{ending}")
            if not class_file.is_file():
                continue
            text = class_file.read_text(encoding="utf-8")
            if ending == "txt":
                names = [line.strip() for line in text.splitlines() if line.strip()]
            else:
                try:
                    names = json.loads(text)
                except json.JSONDecodeError as error:
                    raise CheckpointError(f"{class_file} is not JSON: {error}.") from error
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise CheckpointError(f"{class_file} must list the names of the classes, in the order of their ids.")
            return tuple(names)
    raise CheckpointError(
        f"The classes of {path.name} are not stated anywhere: list their names, one a line in the order of their ids, "
        f"in {path.with_name(path.name + '.classes.txt')}."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict in the types of the file; raise ``CheckpointError`` for a damaged one."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is a damaged or truncated safetensors file: {error}.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a state dict of ``torch.save`` without running code; raise ``CheckpointError`` where that is impossible."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names the first thing in the file that is not on its list of harmless ones.
        call = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)", str(error))
        if call:
            raise CheckpointError(
                f"{path} is a pickle that would call {call[1]}, which a file of weights does not need, so it was not "
                "loaded. If you trust its origin, save its state dict alone: torch.save(model.state_dict(), ...)."
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint: neither safetensors nor a state dict of torch.save."
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception in its reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is truncated, or is not a checkpoint: {reason}") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path} holds a {type(loaded).__name__} and not a state dict (names to tensors).")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not a state dict: {key!r} is a {type(value).__name__} and not a tensor.")
    return loaded
