"""The tables of docs/operations.md: settings from ``Settings``, metrics from ``Metrics``, alerts from their rules."""

from pathlib import Path

import yaml

from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tools.docs.page import markdown_table

RULES = Path(__file__).resolve().parents[2] / "docker/prometheus/rules.yml"

# What to do about each alert. Without an entry for every alert this command fails.
ADVICE = {
    "FrcnnDown": "The process or its host is gone. Its supervisor should have restarted it: read its last log lines",
    "FrcnnNotReady": "It loads, drains, or its detector has failed: the log says which. On failure the process ends",
    "FrcnnTurnsAway": "More images arrive than the device can process: add replicas; see deploy.md",
    "FrcnnFails": "500: the log names the exception. 504: as for FrcnnQueues, or clients set too short deadlines",
    "FrcnnSlow": "The panel of stages says where. Queue: add replicas. Decode: raise FRCNN_IMAGE_PROCESSES",
    "FrcnnQueues": "The device is the bottleneck: add replicas",
    "FrcnnOutOfMemory": "No request was lost. Lower FRCNN_MAX_BATCH_PIXELS, or find what else uses the device",
    "FrcnnBatchErrors": 'Images fail alone: the log has the exception, or "not finite". If all fail, the process ends',
    "FrcnnPads": "Images fit the canvases badly. FRCNN_CANVAS=exact pads less, and forms smaller batches",
}


def sections() -> dict[str, str]:
    """Return the page's tables by the name of their section."""
    return {"settings": _settings(), "metrics": _metrics(), "alerts": _alerts()}


def _settings() -> str:
    rows = [
        (f"`{PREFIX}{name.upper()}`", "unset" if field.default is None else str(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return markdown_table(("setting", "default", "what it is"), rows)


class _AnyDetector:
    """Stand in for a ``DetectorInfo``: the table needs the labels that are made of it, not their values."""

    device = "cpu"

    def __getattr__(self, name: str) -> str:
        return ""


def _metrics() -> str:
    metrics = Metrics()
    metrics.add_detectors(lambda: [_AnyDetector()])
    label_names = {
        family.name: attribute._labelnames
        for attribute in vars(metrics).values()
        if hasattr(attribute, "_labelnames")
        for family in attribute.describe()
    }
    rows = []
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        # A family that a collector makes at each scrape has labels only in its samples.
        labels = label_names[family.name] if family.name in label_names else family.samples[0].labels
        rows.append((f"`{name}`", family.type, ", ".join(labels) or "none", family.documentation))
    return markdown_table(("metric", "type", "labels", "what it is"), rows)


def _alerts() -> str:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    rows = [
        (
            f"`{rule['alert']}`",
            rule["labels"]["severity"],
            f"`{rule['expr']}` for {rule.get('for', '0m')}",
            ADVICE[rule["alert"]],
        )
        for rule in rules
    ]
    return markdown_table(("alert", "severity", "fires when", "what to do"), rows)
