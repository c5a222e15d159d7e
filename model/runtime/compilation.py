"""From an eager engine to a compiled one, beside the serving.

    1. look for the library in the cache; where it is missing, a child process of low priority makes it
    2. load it, and hold its answer on a probe against the eager one's
    3. time both on the probe, at the first start with this library; only what agrees and is faster takes over

Whatever fails, the eager engine stays, and ``note`` says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import DetectorConfig
from model.faster_rcnn import Dense, FasterRCNN
from model.ops import map_shapes, table_layout
from model.runtime.build import LIBRARY, Job, send
from model.runtime.cache import CacheRefused, CompiledCache, compiled_dir, key_of
from model.runtime.engine import EagerEngine, Engine, Features
from model.runtime.library import Library, LibraryError
from model.runtime.parts import level_shapes
from model.runtime.probe import probe
from model.runtime.winograd import WinogradConv2d

log = logging.getLogger("frcnn.engine")

# Root mean square of the difference over that of the eager answer. Both round differently in a short type: fifty layers
# of bfloat16 (8 bits) differ by some hundredths, of float32 by some millionths.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
_PATIENCE = 3600.0  # seconds for the child, on the slowest machine
# Of the comparison: at least and at most so many rounds, and no further one after so many seconds.
_FEWEST, _MOST, _SECONDS = 3, 30, 4.0


class CompiledEngine:
    """The dense part from a library, and the heads on the table that it writes."""

    name = "compiled"

    def __init__(self, model: FasterRCNN, library: Callable[[Tensor], Sequence[Tensor]], eager: EagerEngine) -> None:
        self.model = model
        self.library = library
        self.eager = eager

    def dense(self, pixels: Tensor, asking: Sequence[int]) -> tuple[Features, Dense | None]:
        """See ``Engine``. The RPN's head runs on every row."""
        batch, _, height, width = pixels.shape
        if min(height, width) < 2 * self.model.config.transform.stride:
            return self.eager.dense(pixels, asking)  # what is one cell high is not compiled
        table, logits, deltas = self.library(pixels.contiguous(memory_format=torch.channels_last))
        maps, start = [], 0
        for rows, columns in level_shapes(self.model, (height, width)):
            end = start + batch * rows * columns
            maps.append(table[start:end].view(batch, rows, columns, -1).permute(0, 3, 1, 2))
            start = end
        features = Features(maps, table)
        if not asking:
            return features, None
        if len(asking) == batch:
            return features, Dense(maps, logits, deltas)
        index = list(asking)
        return features, Dense([level[index] for level in maps], logits[index], deltas[index])

    def heads(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Engine``."""
        table, heads = features.table, self.model.roi_heads
        if table is None or heads.config.pool == "max":
            return self.eager.heads(features, regions)
        layout = table_layout(map_shapes(features.maps), len(features.maps[0]), table.device)
        logits, offsets = heads.classify(heads.pool_table(table, layout, regions).permute(0, 3, 1, 2))
        return logits.float(), offsets.float()


class Compilation:
    """One detector's way to its compiled engine."""

    def __init__(
        self,
        model: FasterRCNN,
        config: DetectorConfig,
        eager: EagerEngine,
        device: torch.device,
        canvas: tuple[int, int],
        adopt: Callable[[Engine], None],
    ) -> None:
        """canvas: (height, width) of the probe. adopt: is given the compiled engine, once, from another thread."""
        self.note = "Eager: compiling begins with the warm-up."
        self.model, self.config, self.eager, self.device, self.canvas = model, config, eager, device, canvas
        self._adopt = adopt
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, once: at once with what the cache has, and beside the serving with what has to be made first."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="frcnn-compile", daemon=True)
        found = self._look()
        if found is None:
            self.note = "Eager while the compiled form is being made."
            self._thread.start()
            return
        self._thread.start()
        self._thread.join()

    def wait(self) -> None:
        """Return when it is settled which engine serves."""
        self.start()
        assert self._thread is not None
        self._thread.join()

    def close(self) -> None:
        """Give up what is still being made."""
        if (child := self._child) is not None and child.poll() is None:
            _kill(child)

    def _look(self) -> Path | None:
        try:
            return CompiledCache(compiled_dir()).find(self._key(), LIBRARY)
        except CacheRefused:
            return None  # the thread finds out too, and says so

    def _key(self) -> str:
        return key_of(self.model, self.config, self.device, torch.get_num_threads())

    def _run(self) -> None:
        try:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # of this thread: it begins with the first GPU
            cache, key = CompiledCache(compiled_dir()), self._key()
            origin = "from the cache"
            if (file := cache.find(key, LIBRARY)) is None:
                began = time.monotonic()
                file = self._make(cache, key)
                origin = f"made in {time.monotonic() - began:.0f} s"
            times = _Times.read(cache.noted(key, self._race_name()))
            if times is not None and not times.worth_it:
                raise _Failed(f"the compiled form is no faster here ({self._words(times)}, timed at an earlier start).")
            try:
                engine = CompiledEngine(self.model, Library(file, self.device), self.eager)
            except LibraryError:
                cache.drop(key)
                raise
            fresh = self._judge(engine, times)
            if times is None:
                cache.note(key, self._race_name(), fresh._asdict())
            if not fresh.worth_it:
                raise _Failed(f"the compiled form is no faster here ({self._words(fresh)}).")
            self._adopt(engine)
            self.note = f"Compiled: {self._words(fresh)}; {origin}."
            log.info("the engine is compiled", extra={"reason": self.note})
        except (CacheRefused, LibraryError, _Failed) as error:
            self._stay(str(error))
        except Exception as error:
            log.exception("compiling failed")
            self._stay(f"compiling failed ({type(error).__name__}: {error}).")

    def _stay(self, reason: str) -> None:
        self.note = f"Eager: {reason}"
        log.warning("the engine stays eager", extra={"reason": reason})

    def _make(self, cache: CompiledCache, key: str) -> Path:
        compiler = os.environ.get("CXX") or "g++"
        if self.device.type == "cpu" and shutil.which(compiler) is None:
            raise _Failed(f"there is no C++ compiler ({compiler}) to compile with.")
        with cache.making() as folder:
            state = {
                name: value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                for name, value in self.model.state_dict().items()
            }
            dtype = str(self.eager.dtype).removeprefix("torch.")
            job = Job(self.config, state, dtype, str(self.device), self.canvas, torch.get_num_threads(), folder)
            self._compile(job)
            return cache.keep(key, folder / LIBRARY)

    def _compile(self, job: Job) -> None:
        words = job.folder / "errors.txt"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            # Not the folder that all users share in the system's own for what is temporary.
            "TORCHINDUCTOR_CACHE_DIR": str(job.folder / "work"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        with open(words, "wb") as errors:
            self._child = child = subprocess.Popen(
                [sys.executable, "-m", "model.runtime.build"],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
            assert child.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    send(job, child.stdin)
                code = child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                _kill(child)
                raise _Failed(f"compiling took over {_PATIENCE:.0f} s.") from None
            finally:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
                child.wait()
        if code or not (job.folder / LIBRARY).exists():
            lines = [line for line in words.read_text(errors="replace").splitlines() if line.strip()]
            raise _Failed(f"compiling failed with code {code} ({lines[-1].strip()[:300] if lines else 'no word'}).")

    @torch.inference_mode()
    def _judge(self, engine: CompiledEngine, times: _Times | None) -> _Times:
        """The times of both engines, unless an earlier start took them. Raises ``_Failed`` where they do not agree."""
        pixels, regions = probe(self.canvas, self.config.rpn.post_nms, self.device)
        expected, found = _answers(self.eager, pixels, regions), _answers(engine, pixels, regions)
        off = max(_distance(a, b) for a, b in zip(expected, found, strict=True))
        limit = TOLERANCES[self.eager.dtype]
        if not off <= limit:
            raise _Failed(f"the compiled form's answer differs by {off:.2g} of its size, and may by {limit:g}.")
        return times or _Times(*self._race(pixels, regions, engine))

    def _words(self, times: _Times) -> str:
        canvas = "x".join(map(str, self.canvas))
        return f"{times.compiled * 1e3:.1f} ms against {times.eager * 1e3:.1f} ms eager for the network on {canvas}"

    def _race_name(self) -> str:
        """What, beside the library's key, decides who wins: the probe's size, and how the eager engine convolves."""
        winograd = sum(isinstance(layer, WinogradConv2d) for layer in self.model.modules())
        return f"race-{'x'.join(map(str, self.canvas))}-winograd-{winograd}"

    def _race(self, pixels: Tensor, regions: Tensor, engine: CompiledEngine) -> tuple[float, float]:
        """Seconds of the eager and of the compiled engine: in turns, the best of several: others' work only adds."""
        best = [float("inf")] * 2
        began = time.monotonic()
        for done in range(1, _MOST + 1):
            engines: tuple[Engine, Engine] = (self.eager, engine)
            for i, one in enumerate(engines):
                self._synchronise()
                start = time.perf_counter()
                _answers(one, pixels, regions)
                self._synchronise()
                best[i] = min(best[i], time.perf_counter() - start)
            if done >= _FEWEST and time.monotonic() - began > _SECONDS:
                break
        return best[0], best[1]

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child, which leads a session of its own, with the C++ compiler that it may have called."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


class _Times(NamedTuple):
    """Seconds that the network took on the probe."""

    eager: float
    compiled: float

    @property
    def worth_it(self) -> bool:
        """Whether the compiled form is the faster one."""
        return self.compiled < self.eager

    @staticmethod
    def read(noted: Mapping[str, float] | None) -> _Times | None:
        """From the cache's note; None where it has none, or another."""
        if noted is None or noted.keys() != {"eager", "compiled"}:
            return None
        return _Times(noted["eager"], noted["compiled"])


class _Failed(Exception):
    """Why the engine stays eager, as the end of a sentence."""


def _answers(engine: Engine, pixels: Tensor, regions: Tensor) -> list[Tensor]:
    features, dense = engine.dense(pixels, [0])
    assert dense is not None
    return [*features.maps, dense.logits, dense.deltas, *engine.heads(features, regions)]


def _distance(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    wrong, size = ((one.float().square().mean().sqrt()) for one in (expected.float() - found.float(), expected))
    return float(wrong / size.clamp(min=1e-12))
