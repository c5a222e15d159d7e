"""The command: ``python -m benchmarks.gpu``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import benchmarks.gpu
from benchmarks import report
from benchmarks.gpu import agreement, machine, memory, profile, serving, speed, suite, training
from benchmarks.gpu.run import Run
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.table import tables
from model.runtime.malloc import configure_malloc

SECTIONS = (machine.SECTION, suite.SECTION, agreement.SECTION, speed.SECTION, profile.SECTION, memory.SECTION)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--limit", type=float, default=480, help="seconds for all sections together (default 480)")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default: benchmarks/results, and the page")
    parser.add_argument("--revision", help="the commit, where git is not there to say it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try the code out; not for figures")
    parser.add_argument("--train", action="store_true", help="also training steps a second, after the limit")
    parser.add_argument("--http", action="store_true", help="also the service through HTTP, after the limit")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--sections", nargs="+", default=names, choices=names, help="these alone, facts always")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    configure_malloc()  # the sections are forks of this process
    out = asked.out or (Path(tempfile.mkdtemp()) if asked.tiny else report.RESULTS)
    try:
        revision = asked.revision or report.commit() or "unknown"
    except OSError:  # there is no git
        revision = "unknown"
    settings = Settings(asked.device, asked.limit, out, revision, asked.tiny, asked.train, asked.http)
    sections = [section for section in SECTIONS if section.name in ("facts", *asked.sections)]
    sections += [training.SECTION] * settings.train + [serving.SECTION] * settings.http
    run = Run(settings, sections)
    found = run.all()
    for table in tables({run.path.stem: found}):
        print(table.markdown())
    print(f"Written to {run.path}.")
    if out == report.RESULTS:
        try:
            report.write_page()
        except ImportError as error:  # the other tables need more packages than this command
            print(f"The page is as it was ({error}); where they are installed: python -m benchmarks.report")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
