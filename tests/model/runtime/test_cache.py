"""Compiled code on disk: found again, trusted only where it is this user's own, and made again where it is damaged."""

import os
from pathlib import Path

import pytest
import torch

from model.config import LITE, DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.runtime.cache import CacheRefused, CompiledCache, compiled_dir, key_of
from model.runtime.library import Library, LibraryError

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path) -> CompiledCache:
    return CompiledCache(tmp_path / "compiled")


def _made(cache: CompiledCache, content: bytes = b"code", key: str = "key") -> Path:
    with cache.making() as place:
        file = place / "dense.so"
        file.write_bytes(content)
        return cache.keep(key, file)


def test_what_was_kept_is_found_by_the_next_process(cache: CompiledCache) -> None:
    kept = _made(cache)
    assert CompiledCache(cache.folder).find("key", "dense.so") == kept
    assert kept.read_bytes() == b"code"
    assert cache.find("another", "dense.so") is None


def test_nothing_is_left_of_the_making(cache: CompiledCache) -> None:
    _made(cache)
    with cache.making() as place:
        (place / "half").touch()
    assert [path.name for path in cache.folder.iterdir()] == ["key"]


@pytest.mark.parametrize("damage", ["truncated", "another's", "unnoted", "nonsense noted", "gone"])
def test_a_damaged_file_is_not_found_and_can_be_made_again(cache: CompiledCache, damage: str) -> None:
    file = _made(cache)
    about = file.with_name("about.json")
    match damage:
        case "truncated":
            file.write_bytes(b"co")
        case "another's":
            file.write_bytes(b"evil")
        case "unnoted":
            about.unlink()
        case "nonsense noted":
            about.write_text("[1")
        case "gone":
            file.unlink()
    assert cache.find("key", "dense.so") is None
    again = _made(cache)
    assert cache.find("key", "dense.so") == again


def test_of_two_that_make_the_same_the_first_stays(cache: CompiledCache) -> None:
    first = _made(cache, b"first")
    assert _made(cache, b"second") == first
    assert first.read_bytes() == b"first"


def test_the_oldest_and_what_a_killed_process_left_go(cache: CompiledCache) -> None:
    left = cache.folder / ".making-left"
    left.mkdir()
    os.utime(left, (0, 0))
    for age in range(10, 0, -1):
        kept = _made(cache, key=f"key{age}")
        os.utime(kept.parent, (1e9 - age, 1e9 - age))
    _made(cache, key="new")
    assert {path.name for path in cache.folder.iterdir()} == {"new", *(f"key{age}" for age in range(1, 8))}


def test_a_new_folder_is_nobody_elses(cache: CompiledCache) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheRefused, match="others may write to it"):
        CompiledCache(folder)


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(CacheRefused, match="does not belong to this user"):
        CompiledCache(tmp_path)


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(CacheRefused, match="refused"):
        CompiledCache(tmp_path / "link")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheRefused, match="cannot be used"):
        CompiledCache(tmp_path / "file" / "compiled")


def test_the_folder_lies_in_the_cache_that_the_operator_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_CACHE_DIR", str(tmp_path))
    assert compiled_dir() == tmp_path / "compiled"


def test_the_key_changes_with_all_that_the_code_depends_on() -> None:
    config: DetectorConfig = LITE.with_classes(3)
    model = FasterRCNN(config).eval()
    key = key_of(model, config, CPU, 1)
    assert key == key_of(model, config, CPU, 1)
    keys = {key, key_of(model, config, CPU, 2), key_of(model, LITE, CPU, 1)}
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    keys.add(key_of(model, config, CPU, 1))
    keys.add(key_of(model.bfloat16(), config, CPU, 1))
    assert len(keys) == 5


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_what_is_no_library_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "dense.so"
    file.write_bytes(content)
    with pytest.raises(LibraryError, match=r"dense\.so cannot be loaded"):
        Library(file, CPU)


def test_a_library_of_something_else_is_refused() -> None:
    import _ctypes

    with pytest.raises(LibraryError, match="cannot be loaded"):
        Library(Path(_ctypes.__file__), CPU)
