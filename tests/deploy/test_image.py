"""The Dockerfile: hadolint accepts it, and the image has its user, labels, volume and health check."""

import re
import subprocess
import sys
from pathlib import Path


def instructions(dockerfile: str) -> list[str]:
    """Return the instructions of a Dockerfile, without comments and with continued lines joined."""
    code = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    return [line.strip() for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def last_stage(repo: Path) -> list[str]:
    """Return the instructions of the image that is shipped."""
    steps = instructions((repo / "Dockerfile").read_text())
    return steps[max(i for i, step in enumerate(steps) if step.startswith("FROM")) :]


def test_the_dockerfile_is_hadolint_clean(repo: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", repo / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_has_its_user_stop_signal_and_health_check(repo: Path) -> None:
    stage = last_stage(repo)
    assert [s for s in stage if s.startswith("USER")][-1] == "USER 10001:10001"
    assert "STOPSIGNAL SIGTERM" in stage
    assert any(s.startswith("HEALTHCHECK") and "curl" not in s for s in stage)
    assert any("--mount=type=cache" in s for s in instructions((repo / "Dockerfile").read_text()))


def test_a_compiler_is_in_the_image_for_gpus_alone(repo: Path) -> None:
    stage = last_stage(repo)
    assert "ARG DEVICE=gpu" in stage  # a stage does not see the arguments of another
    [install] = [step for step in stage if "apt-get install" in step]
    assert re.search(r'if \[ "\$DEVICE" != cpu \]; then .*gcc libc6-dev; +fi', install)


def test_the_image_has_labels_of_version_and_revision(repo: Path) -> None:
    dockerfile = (repo / "Dockerfile").read_text()
    for name in ("version", "revision", "created"):
        assert f"ARG {name.upper()}=" in dockerfile
        assert f'org.opencontainers.image.{name}="${name.upper()}"' in dockerfile


def test_the_start_period_suffices_for_a_gpu(repo: Path) -> None:
    assert "HEALTHCHECK --interval=10s --timeout=5s --start-period=300s" in (repo / "Dockerfile").read_text()


def test_the_cache_is_a_volume(repo: Path) -> None:
    dockerfile = (repo / "Dockerfile").read_text()
    assert "FRCNN_CACHE_DIR=/var/cache/frcnn" in dockerfile
    assert "VOLUME /var/cache/frcnn" in dockerfile
    # Not on /tmp: Docker's tmpfs is noexec, and kernels are loaded from there.
    assert "TRITON_CACHE_DIR=/var/cache/frcnn/" in dockerfile
