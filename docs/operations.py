"""Write the tables of docs/operations.md from the code: `make operations`; with --check only say whether they are so.

What stands between the markers is made: settings from ``Settings``, metrics from ``Metrics``, alerts from the rules.
The rest of the page is written by hand and stays.
"""

import re
import sys
from pathlib import Path

import yaml

from service.metrics import Metrics
from service.settings import PREFIX, Settings

HERE = Path(__file__).resolve().parent
PAGE = HERE / "operations.md"
RULES = HERE.parent / "docker/prometheus/rules.yml"
HOLE = r"(<!-- made: {} -->\n).*?(<!-- end -->)"

# What to do about an alert; a new alert without advice stops this command.
ADVICE = {
    "FrcnnDown": "The process or its host is gone: its supervisor should have restarted it; read its last log lines",
    "FrcnnNotReady": "It loads, drains, or its detector has failed: the log says which. It ends by itself on failure",
    "FrcnnTurnsAway": "More pictures come than the device can take: add replicas, or ask for less; see deploy.md",
    "FrcnnFails": "500: the log names the exception. 504: as for FrcnnQueues, or clients ask for too short deadlines",
    "FrcnnSlow": "The panel of stages says where: queue, add replicas; decode, more FRCNN_DECODE_THREADS",
    "FrcnnQueues": "The device is the bottleneck: add replicas",
    "FrcnnOutOfMemory": "Nothing was lost. Lower FRCNN_MAX_BATCH_PIXELS, or find who else uses the device",
    "FrcnnBatchErrors": 'Images fail alone: the log has the exception, or "not finite"; if all do, the process ends',
    "FrcnnPads": "Pictures fit the canvases badly; FRCNN_CANVAS=exact pads less, and batches less",
}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def settings() -> str:
    """Every setting with its default."""
    rows = [
        (f"`{PREFIX}{name.upper()}`", "unset" if field.default is None else str(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return table(("setting", "default", "what it is"), rows)


def metrics() -> str:
    """Every metric with its labels."""
    rows = []
    for attribute in vars(Metrics()).values():
        described = getattr(attribute, "describe", None)
        for metric in described() if described else ():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            labels = ", ".join(getattr(attribute, "_labelnames", ())) or "none"
            rows.append((f"`{name}`", metric.type, labels, metric.documentation))
    served = "name, preset, precision, device, sha256"
    # These are asked for at each scrape, of a detector that this command does not load.
    rows += [
        ("`frcnn_model_info`", "gauge", served, "What is being served; always 1"),
        ("`frcnn_device_memory_bytes`", "gauge", "device", "Memory held on the device"),
    ]
    return table(("metric", "type", "labels", "what it is"), rows)


def alerts() -> str:
    """Every alert, when it fires, and what to do."""
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
    ]
    rows = [
        (f"`{r['alert']}`", r["labels"]["severity"], f"`{r['expr']}` for {r.get('for', '0m')}", ADVICE[r["alert"]])
        for r in rules
    ]
    return table(("alert", "severity", "fires when", "what to do"), rows)


def main() -> None:
    """Fill the holes of the page."""
    page = old = PAGE.read_text()
    for name, made in (("settings", settings()), ("metrics", metrics()), ("alerts", alerts())):
        page = re.sub(HOLE.format(name), lambda m, made=made: m[1] + made + m[2], page, flags=re.DOTALL)
    if "--check" in sys.argv:
        sys.exit(f"{PAGE.name} is not what the code says: run make operations" if page != old else 0)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
