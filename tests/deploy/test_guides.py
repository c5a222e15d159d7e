"""The generated tables of the guides are up to date."""

import re
import subprocess
import sys
from pathlib import Path

from service.settings import PREFIX, Settings


def test_every_setting_and_alert_is_in_the_operators_guide_with_its_default(repo: Path) -> None:
    guide = (repo / "docs/operations.md").read_text()
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else str(field.default)
        assert f"| `{PREFIX}{name.upper()}` | {default} |" in guide, f"{name}: run make docs"
    for alert in re.findall(r"alert: (\w+)", (repo / "docker/prometheus/rules.yml").read_text()):
        assert f"| `{alert}` |" in guide, alert


def test_the_generated_tables_of_the_docs_are_up_to_date(repo: Path) -> None:
    command = [sys.executable, "-m", "tools.docs", "--check"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
