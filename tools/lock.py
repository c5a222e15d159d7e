"""Write requirements.lock: one exact version of everything that any extra of pyproject.toml pulls in.

The lock is a constraints file (`pip install --constraint`): it says which version, and the packages' own metadata says
whether. So one file serves the runtime and the developer, and a Mac or torch's CPU build simply never asks for the CUDA
libraries pinned here, while Linux gets exactly these. Run it with `make lock`, on Linux, whose set is the largest.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Exact versions, written by `make lock`. Do not edit.
# A constraints file: pip install --constraint requirements.lock --editable '.[dev]'
# It covers the runtime and every extra; lines for packages that your platform does not ask for have no effect.
"""


def main() -> None:
    """Let pip resolve the project with all its extras, newest versions first, and write down what it chose."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ",".join(sorted(project.get("optional-dependencies", {})))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.run([*pip, f"{ROOT}[{extras}]"], check=True, capture_output=True, text=True).stdout)
    packages = [entry["metadata"] for entry in report["install"]]
    chosen = {package["name"].lower().replace("_", "-"): package["version"] for package in packages}
    del chosen[project["name"]]
    pins = [f"{name}=={version}\n" for name, version in sorted(chosen.items())]
    (ROOT / "requirements.lock").write_text(HEADER + "".join(pins))
    print(f"requirements.lock: {len(pins)} packages pinned")


if __name__ == "__main__":
    main()
