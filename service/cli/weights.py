"""Fetching published weights: the one place that goes out to the network, and only when a person asks it to.

Here and not in ``model/``, which knows nothing of HTTP. Nothing in serving imports it: a server never fetches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from model.checkpoint import CheckpointError, ManifestEntry, cache_dir, load_manifest, sha256

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes there are (None where the server does not say)."""

# Ten times the largest published file: an endless answer stops here and not at a full disk.
MOST_BYTES = 2 * 2**30


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
    """The file of the manifest's checkpoint ``name``, downloaded into the cache folder unless it is here already.

    The address comes from torchvision's own enum, a proxy from the environment (HTTPS_PROXY, NO_PROXY). Raises
    ``FetchError`` where there is no such name, no network, or other bytes than the manifest's hash wants.
    """
    entries = {entry.name: entry for entry in load_manifest(manifest, cache)}
    entry = entries.get(name)
    if entry is None:
        published = ", ".join(one.name for one in entries.values() if one.source is not None)
        raise FetchError(f"No checkpoint {name!r} to fetch. There are {published}.")
    if entry.path is not None and sha256(entry.path).startswith(entry.sha256):
        return entry.path
    if entry.source is None:
        raise FetchError(f"{name!r} is not published: its file {entry.file} belongs into the repository's weights/.")
    target = (cache_dir() if cache is None else cache) / entry.file
    return download(published_url(entry), target, entry.sha256, progress=progress, client=client)


def published_url(entry: ManifestEntry) -> str:
    """The address that torchvision's enum has for an entry's ``source``; ``CheckpointError`` where it has none."""
    import torchvision.models.detection as published  # slow to import, and needed here alone

    enum, _, member = (entry.source or "").partition(".")
    try:
        return str(getattr(published, enum)[member].url)
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

    Bytes gather in ``TARGET.part``; what a broken connection or an earlier call left there is continued. Connections
    are retried ``attempts`` times without progress, after ``pause`` seconds and then twice as long each. Raises
    ``FetchError``; then ``target`` is as it was.
    """
    part = target.with_name(target.name + ".part")
    own = client is None
    client = _client() if client is None else client
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        continued = part.exists()
        _gather(client, url, part, target, digest, progress, attempts, pause)
        if continued and not sha256(part).startswith(digest):
            part.unlink()  # the old beginning may have been another file's: once more, from nothing
            _gather(client, url, part, target, digest, progress, attempts, pause)
        found = sha256(part)
        if not found.startswith(digest):
            part.unlink()
            raise FetchError(
                f"What {httpx.URL(url).host} sent is not {target.name}: its SHA-256 is {found}, and {digest} was "
                "expected. Nothing was kept. A proxy may have answered in its place; try again, or another network."
            )
        os.replace(part, target)
    except OSError as error:
        raise FetchError(
            f"Cannot write {target}: {error.strerror or error}. Set FRCNN_CACHE_DIR to another folder."
        ) from error
    finally:
        if own:
            client.close()
    return target


def _client() -> httpx.Client:
    try:
        return httpx.Client(timeout=30, follow_redirects=True)
    except (ImportError, ValueError) as error:  # a proxy of a kind that httpx does not speak
        raise FetchError(f"The proxy that the environment names cannot be used: {error}") from error


def _gather(
    client: httpx.Client,
    url: str,
    part: Path,
    target: Path,
    digest: str,
    progress: Progress | None,
    attempts: int,
    pause: float,
) -> None:
    """Bring ``part`` to the length that the server has."""
    failures = 0
    while True:
        before = _size(part)
        try:
            if _continue(client, url, part, progress):
                return
            trouble = "the server is busy"
        except httpx.HTTPError as error:
            trouble = str(error) or type(error).__name__
        failures = failures + 1 if _size(part) <= before else 1
        if failures >= attempts:
            # A server that promises more bytes than there are leaves a whole file all the same.
            if part.exists() and sha256(part).startswith(digest):
                return
            raise FetchError(
                f"Could not fetch {target.name} from {httpx.URL(url).host}: {trouble}. What came is kept, and the next "
                "call goes on from there. Behind a proxy, set HTTPS_PROXY. Without a network, download it elsewhere "
                f"({url}) and put it into {target.parent}, or give its path as FRCNN_WEIGHTS."
            )
        time.sleep(pause * 2 ** (failures - 1))


def _continue(client: httpx.Client, url: str, part: Path, progress: Progress | None) -> bool:
    """Ask for what ``part`` lacks and append it. True: it is whole. False: ask again later."""
    have = _size(part)
    # identity: the bytes as they are, since they are counted and hashed
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        status, stated = response.status_code, response.headers.get("Content-Range", "")
        if url.startswith("https:") and response.url.scheme != "https":
            raise FetchError(f"{url} was redirected to {response.url}, which is not encrypted; it was not followed.")
        if status == 416:
            if stated.endswith(f"/{have}"):
                return True
            part.unlink(missing_ok=True)  # longer than what the server has: of another file
            return False
        if status == 429 or status >= 500:
            return False
        if status not in (200, 206):
            raise FetchError(f"{url} answered {status} {response.reason_phrase}. See whether the address still exists.")
        if status == 206 and not stated.startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return False
        done = have if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        with part.open("ab" if status == 206 else "wb") as file:
            for chunk in response.iter_raw():
                done += len(chunk)
                if done > MOST_BYTES:
                    raise FetchError(f"{url} sent more than {MOST_BYTES} bytes, which no checkpoint here has.")
                file.write(chunk)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
