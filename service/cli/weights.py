"""``frcnn weights``: list, fetch and verify the checkpoints in weights/manifest.toml."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from service.cli.console import fail, stderr, stdout

app = typer.Typer(no_args_is_help=True, help="List, fetch and verify the checkpoints in weights/manifest.toml.")


@app.command("list")
def list_weights() -> None:
    """List the checkpoints that ``--weights`` knows by name."""
    from model.checkpoint import CheckpointError, load_manifest

    table = Table("name", "preset", "classes", "metrics", "here", "licence")
    try:
        entries = load_manifest()
    except CheckpointError as error:
        fail(error)
    for entry in entries:
        metrics = "\n".join(f"{name} {value:.3f}" for name, value in entry.metrics.items())
        here = "no" if entry.path is None else "yes"
        table.add_row(entry.name, entry.preset, str(len(entry.classes) - 1), metrics, here, entry.licence)
    stdout.print(table)


@app.command("fetch")
def fetch_weights(name: Annotated[str, typer.Argument(help="a name that `frcnn weights list` shows")]) -> None:
    """Download published weights into the cache folder; `frcnn serve` itself never fetches anything."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from service.cli.fetch import FetchError, fetch

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=stderr) as bar:
            task = bar.add_task(name, total=None)
            path = fetch(name, progress=lambda downloaded, total: bar.update(task, completed=downloaded, total=total))
    except (FetchError, ValueError, OSError) as error:
        fail(error)
    stdout.print(str(path), soft_wrap=True)


@app.command("verify")
def verify_weights(
    names: Annotated[
        list[str] | None, typer.Argument(help="names in the manifest; all that are here by default")
    ] = None,
) -> None:
    """Compare the files' SHA-256 with the manifest's. Exits with 1 where one differs."""
    from model.checkpoint import CheckpointError, load_manifest, verify

    try:
        entries = {entry.name: entry for entry in load_manifest()}
    except CheckpointError as error:
        fail(error)
    unknown = [name for name in names or () if name not in entries]
    if unknown:
        fail(f"No checkpoint is named {unknown[0]}; there are {', '.join(entries)}.")
    failed = False
    for name in names or [name for name, entry in entries.items() if entry.path is not None]:
        try:
            stdout.print(f"{name}: {verify(entries[name])} is as the manifest says", soft_wrap=True)
        except (CheckpointError, OSError) as error:
            stdout.print(f"{name}: {error}", style="red", soft_wrap=True, markup=False)
            failed = True
    if failed:
        raise typer.Exit(1)
