"""Download published weights into the cache folder, for ``frcnn weights fetch``.

This is the only module that connects to other hosts, and only when a person runs that command: nothing in serving
imports it. It is not in ``model/``, which knows nothing of HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from model.checkpoint import CheckpointError, ManifestEntry, cache_dir, load_manifest, sha256

Progress = Callable[[int, int | None], None]
"""Called with the bytes downloaded so far and the total (None where the server does not say)."""

# Ten times the largest published file: an endless response is stopped before the disk is full.
MAX_BYTES = 2 * 2**30


class FetchError(RuntimeError):
    """Weights could not be fetched; the text says why and what to do."""


def fetch(
    name: str,
    *,
    progress: Progress | None = None,
    manifest: Path | None = None,
    cache: Path | None = None,
    client: httpx.Client | None = None,
) -> Path:
    """Return the file of the manifest's checkpoint ``name``, downloading it into the cache folder unless it is there.

    The URL comes from torchvision's weights enum, a proxy from the environment (HTTPS_PROXY, NO_PROXY). Raises
    ``FetchError`` where there is no such name or no network, or where the bytes do not match the manifest's hash.
    """
    entries = {entry.name: entry for entry in load_manifest(manifest, cache)}
    entry = entries.get(name)
    if entry is None:
        published = ", ".join(candidate.name for candidate in entries.values() if candidate.source is not None)
        raise FetchError(f"No checkpoint {name!r} to fetch. There are {published}.")
    if entry.path is not None and sha256(entry.path).startswith(entry.sha256):
        return entry.path
    if entry.source is None:
        raise FetchError(f"{name!r} is not published: its file {entry.file} belongs into the repository's weights/.")
    target = (cache_dir() if cache is None else cache) / entry.file
    return download(published_url(entry), target, entry.sha256, progress=progress, client=client)


def published_url(entry: ManifestEntry) -> str:
    """Return the URL that torchvision's enum has for ``entry.source``; raise ``CheckpointError`` where it has none."""
    import torchvision.models.detection as torchvision_detection  # slow to import, and needed only here

    enum, _, member = (entry.source or "").partition(".")
    try:
        return str(getattr(torchvision_detection, enum)[member].url)
    except (AttributeError, KeyError) as error:
        raise CheckpointError(f"{entry.name!r}: torchvision publishes no {entry.source!r}.") from error


def download(
    url: str,
    target: Path,
    digest: str,
    *,
    progress: Progress | None = None,
    client: httpx.Client | None = None,
    attempts: int = 5,
    pause: float = 1.0,
) -> Path:
    """Download ``url`` to ``target``, whole and with a SHA-256 that begins with ``digest``, or not at all.

    Bytes are collected in ``TARGET.part``, and a partial file of a broken connection or an earlier call is continued.
    After ``attempts`` connections in a row without progress it gives up; it waits ``pause`` seconds before the second
    and twice as long before each further one. Raises ``FetchError``, and then leaves ``target`` as it was.
    """
    part = target.with_name(target.name + ".part")
    owns_client = client is None
    client = _client() if client is None else client
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        continued = part.exists()
        _download_part(client, url, part, target, digest, progress, attempts, pause)
        if continued and not sha256(part).startswith(digest):
            part.unlink()  # the earlier bytes may be of another file: start again
            _download_part(client, url, part, target, digest, progress, attempts, pause)
        actual = sha256(part)
        if not actual.startswith(digest):
            part.unlink()
            raise FetchError(
                f"What {httpx.URL(url).host} sent is not {target.name}: its SHA-256 is {actual}, and {digest} was "
                "expected. Nothing was kept. A proxy may have answered in its place; try again, or another network."
            )
        os.replace(part, target)
    except OSError as error:
        raise FetchError(
            f"Cannot write {target}: {error.strerror or error}. Set FRCNN_CACHE_DIR to another folder."
        ) from error
    finally:
        if owns_client:
            client.close()
    return target


def _client() -> httpx.Client:
    try:
        return httpx.Client(timeout=30, follow_redirects=True)
    except (ImportError, ValueError) as error:  # a proxy protocol that httpx does not support
        raise FetchError(f"The proxy that the environment names cannot be used: {error}") from error


def _download_part(
    client: httpx.Client,
    url: str,
    part: Path,
    target: Path,
    digest: str,
    progress: Progress | None,
    attempts: int,
    pause: float,
) -> None:
    """Download until ``part`` has the length that the server states; raise ``FetchError`` without progress."""
    failures = 0
    while True:
        size_before = _size(part)
        try:
            if _request_rest(client, url, part, progress):
                return
            reason = "the server is busy"
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
        failures = failures + 1 if _size(part) <= size_before else 1
        if failures >= attempts:
            # Where a server states more bytes than it has, every response ends in an error, yet the file is whole.
            if part.exists() and sha256(part).startswith(digest):
                return
            raise FetchError(
                f"Could not fetch {target.name} from {httpx.URL(url).host}: {reason}. What came is kept, and the next "
                "call goes on from there. Behind a proxy, set HTTPS_PROXY. Without a network, download it elsewhere "
                f"({url}) and put it into {target.parent}, or give its path as FRCNN_WEIGHTS."
            )
        time.sleep(pause * 2 ** (failures - 1))


def _request_rest(client: httpx.Client, url: str, part: Path, progress: Progress | None) -> bool:
    """Request the bytes that ``part`` lacks and append them; return False where the caller should try again."""
    offset = _size(part)
    # identity: no compression, since bytes are counted and hashed
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with client.stream("GET", url, headers=headers) as response:
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if url.startswith("https:") and response.url.scheme != "https":
            raise FetchError(f"{url} was redirected to {response.url}, which is not encrypted; it was not followed.")
        if status == 416:
            if content_range.endswith(f"/{offset}"):
                return True
            part.unlink(missing_ok=True)  # longer than the server's file, so not a part of it
            return False
        if status == 429 or status >= 500:
            return False
        if status not in (200, 206):
            raise FetchError(f"{url} answered {status} {response.reason_phrase}. Check that the address still exists.")
        if status == 206 and not content_range.startswith(f"bytes {offset}-"):
            part.unlink(missing_ok=True)
            return False
        downloaded = offset if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = downloaded + int(length) if length.isdigit() else None
        with part.open("ab" if status == 206 else "wb") as file:
            for chunk in response.iter_raw():
                downloaded += len(chunk)
                if downloaded > MAX_BYTES:
                    raise FetchError(f"{url} sent more than {MAX_BYTES} bytes, which no checkpoint here has.")
                file.write(chunk)
                if progress is not None:
                    progress(downloaded, total)
            file.flush()
            os.fsync(file.fileno())
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
