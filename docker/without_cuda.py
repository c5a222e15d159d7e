"""Take CUDA's libraries out of an installed torch that was built with it; for the image that has no GPU.

    python docker/without_cuda.py    # needs gcc and readelf; changes the environment that runs it, for good

torch's wheel on the usual index is the one with CUDA, and its libraries cannot be loaded unless NVIDIA's are there,
though nothing calls them without a GPU. They are replaced by small ones of the same names, which have the symbols that
torch asks for and end the process if one is called. What stays is the CUDA runtime, by which torch finds out that there
is no GPU. Triton goes too: it writes kernels for GPUs alone.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
KEPT = re.compile(r"libcudart\.so\.\d+")
CALLED = 'fputs("%s: this image has no CUDA\\n", stderr); abort();'


def readelf(*arguments: str | Path) -> str:
    """What readelf prints; raises ``CalledProcessError``."""
    return subprocess.run(["readelf", "--wide", *arguments], check=True, capture_output=True, text=True).stdout


def symbols(library: Path) -> tuple[set[str], dict[str, str]]:
    """The names that ``library`` asks others for, and those that it offers, each with its version or ''."""
    wanted, offered = set(), {}
    for line in readelf("--dyn-syms", library).splitlines():
        columns = line.split()
        if len(columns) < 8 or not columns[0].rstrip(":").isdigit() or columns[4] == "LOCAL":
            continue
        name, _, version = columns[7].partition("@")
        if columns[6] == "UND":
            wanted.add(name)
        else:
            offered[name] = version.lstrip("@")
    return wanted, offered


def write_stand_in(library: Path, wanted: set[str]) -> None:
    """Put in the place of ``library`` one that offers what is both offered and ``wanted``, under the same versions."""
    _, offered = symbols(library)
    versions: dict[str, list[str]] = defaultdict(list)
    for name in sorted(wanted & offered.keys()):
        if name.startswith("_Z"):  # C++, while CUDA's interfaces are C: a copy of the standard library's
            continue
        versions[offered[name]].append(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "library.c", Path(folder) / "versions"
        names = [name for group in versions.values() for name in group]
        source.write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n"
            + "".join(f"void {name}(void) {{ {CALLED % name} }}\n" for name in names)
        )
        script.write_text("".join(f"{v} {{ global: {'; '.join(n)}; }};\n" for v, n in versions.items() if v))
        made = Path(folder) / library.name
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library.name}"]
            + ([f"-Wl,--version-script,{script}"] if any(versions) else [])
            + ["-o", made, source],
            check=True,
        )
        shutil.rmtree(library) if library.is_dir() else library.unlink()
        shutil.copy(made, library)


def main() -> None:
    """Put a stand-in in the place of each library."""
    theirs = {path.name: path for path in SITE.glob("nvidia/**/*.so*")}
    if not theirs:
        sys.exit("There are no NVIDIA libraries here.")
    ours = [*SITE.glob("torch/**/*.so*"), *SITE.glob("torchvision/*.so")]
    wanted, needed = set(), set()
    for library in ours:
        wanted |= symbols(library)[0]
        needed |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic", library)))
    stay = set()
    for name in sorted(needed & theirs.keys()):
        stay.add(theirs[name])
        if not KEPT.fullmatch(name):
            write_stand_in(theirs[name], wanted)
    for path in [*SITE.glob("nvidia/**/*"), *SITE.glob("triton/**/*")]:
        if path.is_file() and path not in stay:
            path.unlink()
    for library in ("torch/lib/libtorch_cuda_linalg.so",):  # loaded when it is first called, on a GPU
        (SITE / library).unlink(missing_ok=True)
    shutil.rmtree(SITE / "triton", ignore_errors=True)
    print(f"{len(stay)} libraries stay: " + ", ".join(f"{p.name} {p.stat().st_size:,}" for p in sorted(stay)))


if __name__ == "__main__":
    main()
