"""Run ``python -m benchmarks.gpu``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu import agreement, machine, memory, profile, serving, speed, suite, training
from benchmarks.gpu.run import Run
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.table import tables
from benchmarks.lib import results
from benchmarks.lib.machine import commit
from model.runtime.malloc import configure_malloc

SECTIONS = (machine.SECTION, suite.SECTION, agreement.SECTION, speed.SECTION, profile.SECTION, memory.SECTION)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--limit", type=float, default=480, help="seconds for all sections together (default 480)")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default: benchmarks/results")
    parser.add_argument("--revision", help="the commit, where git is not there to say it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try the code out; not for figures")
    parser.add_argument("--train", action="store_true", help="also training steps a second, after the limit")
    parser.add_argument("--http", action="store_true", help="also the service through HTTP, after the limit")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--sections", nargs="+", default=names, choices=names, help="only these, and always facts")
    return parser.parse_args()


def main() -> int:
    """Run the command; returns 1 where a point has failed."""
    arguments = parse_arguments()
    configure_malloc()  # the sections are forks of this process
    out = arguments.out or (Path(tempfile.mkdtemp()) if arguments.tiny else results.RESULTS)
    try:
        revision = arguments.revision or commit() or "unknown"
    except OSError:  # there is no git
        revision = "unknown"
    settings = Settings(
        arguments.device, arguments.limit, out, revision, arguments.tiny, arguments.train, arguments.http
    )
    sections = [section for section in SECTIONS if section.name in ("facts", *arguments.sections)]
    sections += [training.SECTION] * settings.train + [serving.SECTION] * settings.http
    run = Run(settings, sections)
    result = run.all()
    for table in tables({run.path.stem: result}):
        print(table.markdown())
    print(f"Written to {run.path}.")
    if out == results.RESULTS:
        print("To update docs/performance.md: python -m benchmarks.report")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
