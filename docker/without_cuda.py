"""Remove CUDA's libraries from an installed torch that was built with CUDA, for the image without a GPU.

    python docker/without_cuda.py    # needs gcc and readelf; changes the environment that runs it, permanently

torch's wheel on the usual index is built with CUDA, and its libraries cannot be loaded without NVIDIA's, though nothing
calls those without a GPU. They are replaced by stubs: small libraries of the same names, which have the symbols that
torch needs, and end the process if one is called. The CUDA runtime stays: with it torch finds out that there is no GPU.
Triton is removed too: it compiles kernels for GPUs only.
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
KEPT_LIBRARIES = re.compile(r"libcudart\.so\.\d+")
STUB_BODY = 'fputs("%s: this image has no CUDA\\n", stderr); abort();'


def readelf(*arguments: str | Path) -> str:
    """Return the output of readelf; raise ``CalledProcessError`` where it fails."""
    return subprocess.run(["readelf", "--wide", *arguments], check=True, capture_output=True, text=True).stdout


def symbols(library: Path) -> tuple[set[str], dict[str, str]]:
    """Return the symbols that ``library`` needs of others, and those that it defines, each with its version or ''."""
    undefined, defined = set(), {}
    for line in readelf("--dyn-syms", library).splitlines():
        columns = line.split()
        if len(columns) < 8 or not columns[0].rstrip(":").isdigit() or columns[4] == "LOCAL":
            continue
        name, _, version = columns[7].partition("@")
        if columns[6] == "UND":
            undefined.add(name)
        else:
            defined[name] = version.lstrip("@")
    return undefined, defined


def replace_with_stub(library: Path, needed_symbols: set[str]) -> None:
    """Replace ``library`` by a stub with those of its symbols that are in ``needed_symbols``, in the same versions."""
    _, defined = symbols(library)
    versions: dict[str, list[str]] = defaultdict(list)
    for name in sorted(needed_symbols & defined.keys()):
        if name.startswith("_Z"):  # C++: a copy of the standard library's symbol, since CUDA's interfaces are C
            continue
        versions[defined[name]].append(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "library.c", Path(folder) / "versions"
        names = [name for group in versions.values() for name in group]
        source.write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n"
            + "".join(f"void {name}(void) {{ {STUB_BODY % name} }}\n" for name in names)
        )
        script.write_text(
            "".join(f"{version} {{ global: {'; '.join(group)}; }};\n" for version, group in versions.items() if version)
        )
        stub = Path(folder) / library.name
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library.name}"]
            + ([f"-Wl,--version-script,{script}"] if any(versions) else [])
            + ["-o", stub, source],
            check=True,
        )
        shutil.rmtree(library) if library.is_dir() else library.unlink()
        shutil.copy(stub, library)


def main() -> None:
    """Replace the libraries that torch loads by stubs, and delete the others."""
    nvidia_libraries = {path.name: path for path in SITE.glob("nvidia/**/*.so*")}
    if not nvidia_libraries:
        sys.exit("There are no NVIDIA libraries here.")
    torch_libraries = [*SITE.glob("torch/**/*.so*"), *SITE.glob("torchvision/*.so")]
    needed_symbols, needed_libraries = set(), set()
    for library in torch_libraries:
        needed_symbols |= symbols(library)[0]
        needed_libraries |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic", library)))
    kept_paths = set()
    for name in sorted(needed_libraries & nvidia_libraries.keys()):
        kept_paths.add(nvidia_libraries[name])
        if not KEPT_LIBRARIES.fullmatch(name):
            replace_with_stub(nvidia_libraries[name], needed_symbols)
    for path in [*SITE.glob("nvidia/**/*"), *SITE.glob("triton/**/*")]:
        if path.is_file() and path not in kept_paths:
            path.unlink()
    for library in ("torch/lib/libtorch_cuda_linalg.so",):  # loaded at the first call on a GPU
        (SITE / library).unlink(missing_ok=True)
    shutil.rmtree(SITE / "triton", ignore_errors=True)
    sizes = ", ".join(f"{path.name} {path.stat().st_size:,}" for path in sorted(kept_paths))
    print(f"{len(kept_paths)} libraries stay: {sizes}")


if __name__ == "__main__":
    main()
