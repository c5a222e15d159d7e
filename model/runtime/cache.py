"""Compiled code on disk, so that a second start is a file load.

The rule of trust: what lies here is code, and loading it runs it. So the folder must belong to the user who serves, and
nobody else may write to it; any other folder is refused. Within it, a file is used only where its hash is the one that
was noted when it was made: what was damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from model.checkpoint import cache_dir
from model.config import DetectorConfig

_ABOUT = "about.json"
_KEYS = 8  # so many are kept, the latest; each new version of weights, code or torch makes one
_ABANDONED = 86_400.0  # seconds after which a folder to make files in belongs to nobody any more


class CacheRefused(RuntimeError):
    """The folder cannot be trusted, or not be written."""


def compiled_dir() -> Path:
    """Where compiled code lies: ``compiled/`` in ``FRCNN_CACHE_DIR``, or in ``frcnn/`` of the user's cache."""
    return cache_dir().parent / "compiled"


class CompiledCache:
    """A folder of compiled files by key; one subfolder a key, put in place whole."""

    def __init__(self, folder: Path) -> None:
        """Made where it is missing. Raises ``CacheRefused`` where it is another user's, or others may write to it."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = folder.lstat()
        except OSError as error:
            raise CacheRefused(f"The cache folder {folder} cannot be used ({error.strerror}).") from None
        if hasattr(os, "geteuid") and (not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid()):
            raise CacheRefused(f"The cache folder {folder} is refused: it does not belong to this user.")
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheRefused(f"The cache folder {folder} is refused: others may write to it (chmod go-w).")
        self.folder = folder

    def find(self, key: str, name: str) -> Path | None:
        """The file ``name`` under ``key``, or None where there is none that is whole; a damaged one is removed."""
        place = self.folder / key
        try:
            noted = json.loads((place / _ABOUT).read_text())
            file = place / name
            if noted[name] == _hash(file):
                return file
        except FileNotFoundError:
            if not place.exists():
                return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.drop(key)
        return None

    def note(self, key: str, name: str, values: Mapping[str, float]) -> None:
        """Write down what was found out about the files under ``key``; nothing happens where they are gone."""
        with self.making() as place:
            file = place / f"{name}.json"
            file.write_text(json.dumps(values))
            with contextlib.suppress(FileNotFoundError):
                os.replace(file, self.folder / key / file.name)

    def noted(self, key: str, name: str) -> dict[str, float] | None:
        """What ``note`` wrote last under that name; None where there is nothing that can be read."""
        try:
            found = json.loads((self.folder / key / f"{name}.json").read_text())
            return {str(what): float(value) for what, value in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def drop(self, key: str) -> None:
        """Remove what lies under ``key``."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    @contextmanager
    def making(self) -> Iterator[Path]:
        """A folder to make files in, on the same file system, and gone afterwards."""
        place = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def keep(self, key: str, file: Path) -> Path:
        """Put a file, made in ``making``, under ``key``; of two processes that make the same the first one's stays."""
        with self.making() as place:
            target = place / "whole"
            target.mkdir()
            os.replace(file, target / file.name)
            (target / _ABOUT).write_text(json.dumps({file.name: _hash(target / file.name)}))
            try:
                os.rename(target, self.folder / key)
            except OSError:  # not empty: somebody was faster
                if (found := self.find(key, file.name)) is not None:
                    return found
                os.rename(target, self.folder / key)
        self._tidy()
        return self.folder / key / file.name

    def _tidy(self) -> None:
        """Remove the oldest keys, and what a process that was killed left."""
        places = [(place.stat().st_mtime, place) for place in self.folder.iterdir()]
        keys = sorted((made, place) for made, place in places if not place.name.startswith("."))
        old = [place for _, place in keys[:-_KEYS]]
        old += [place for made, place in places if place.name.startswith(".") and time.time() - made > _ABANDONED]
        for place in old:
            shutil.rmtree(place, ignore_errors=True)


def key_of(model: nn.Module, config: DetectorConfig, device: torch.device, threads: int) -> str:
    """What compiled code depends on, as a hash: weights and their type, configuration, code, torch and processor."""
    digest = hashlib.sha256()
    versions = (torch.__version__, torch.version.git_version, _code(), _processor(device), threads)
    digest.update(repr((config, versions)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:40]


@lru_cache(maxsize=1)
def _code() -> str:
    """A hash of this package's sources: other code may compute something else."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for folder in (root, root / "backbones", root / "runtime"):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        return f"{about.name} {about.major}.{about.minor} {torch.version.cuda}"
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return capability
    # The compiler is told to use what this very processor has.
    return capability + "".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    )


def _hash(file: Path) -> str:
    with open(file, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
