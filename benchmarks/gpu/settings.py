"""The settings of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """limit: seconds for the sections that are always run. tiny: the smallest sizes, to try the code out."""

    device: str = "cuda"
    limit: float = 480.0
    out: Path = Path("benchmarks/results")
    revision: str = "unknown"
    tiny: bool = False
    train: bool = False
    http: bool = False

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, the most important first."""
        return (1, 2) if self.tiny else (1, 8, 4, 2)

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest batch and the largest."""
        return (1, 2) if self.tiny else (1, 8)
