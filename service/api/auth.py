"""API keys: a file with one key a line, read again when it changes."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from starlette.datastructures import Headers

from service.errors import KeyBusy, Unauthorized
from service.settings import SettingsError


class KeyRing:
    """The accepted API keys. Only their hashes are kept.

    The hashes are keyed with a secret of this process: so a client cannot choose a key whose hash begins as an accepted
    one does, and the time that a look-up takes tells it nothing.
    """

    CHECK_EVERY = 1.0  # seconds between looks at the file's modification time

    def __init__(self, path: Path, max_inflight: int | None = None) -> None:
        """Read the keys in the file ``path``.

        max_inflight: requests of one key at once; None for no limit. Raises ``SettingsError`` where the file cannot be
        read or holds no key.
        """
        self._path = path
        self._max_inflight = max_inflight
        self._inflight: Counter[bytes] = Counter()
        self._secret = secrets.token_bytes(32)
        try:
            self._stamp = self._read_stamp()
            self._hashes = self._read_hashes()
        except OSError as error:
            raise SettingsError(
                f"FRCNN_API_KEYS_FILE is {str(path)!r}; it cannot be read ({error.strerror})."
            ) from None
        if not self._hashes:
            raise SettingsError(f"FRCNN_API_KEYS_FILE is {str(path)!r}; it holds no key: put one on each line.")
        self._checked = time.monotonic()

    def check(self, headers: Headers) -> bytes:
        """Return the hash of the key in a request's headers. Raises ``Unauthorized`` unless it is one of the keys."""
        self._reload()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise Unauthorized("An API key is needed; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        # Starlette decodes headers as Latin-1, so this restores the bytes that were sent.
        digest = self._hash(key.encode("latin-1"))
        if digest not in self._hashes:
            raise Unauthorized("The API key is not one of this service's; ask its operator for one.")
        return digest

    @contextlib.contextmanager
    def limit_concurrency(self, key: bytes) -> Iterator[None]:
        """Count a request of ``key``, a hash from ``check``. Raises ``KeyBusy`` over the limit."""
        if self._max_inflight is not None and self._inflight[key] >= self._max_inflight:
            raise KeyBusy(
                f"{self._max_inflight} requests of this API key are in progress, which is the limit; "
                "wait for one of them.",
                retry_after=1,
            )
        self._inflight[key] += 1
        try:
            yield
        finally:
            self._inflight[key] -= 1
            if not self._inflight[key]:
                del self._inflight[key]

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked < self.CHECK_EVERY:
            return
        self._checked = now
        try:
            stamp = self._read_stamp()
            if stamp != self._stamp:
                # An empty file accepts no key; a file that is missing for a moment changes nothing.
                self._stamp, self._hashes = stamp, self._read_hashes()
        except OSError:
            return

    def _read_stamp(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read_hashes(self) -> frozenset[bytes]:
        # Bytes, as in a header: a file that is not valid text must not raise an error.
        lines = (line.strip() for line in self._path.read_bytes().splitlines())
        return frozenset(self._hash(line) for line in lines if line and not line.startswith(b"#"))

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret).digest()
