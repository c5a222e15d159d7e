"""The tests that SECURITY.md names exist."""

import re
from pathlib import Path


def test_every_test_that_the_threat_model_names_is_there(repo: Path) -> None:
    text = (repo / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (repo / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_the_readme_links_to_the_guides(repo: Path) -> None:
    assert "(SECURITY.md)" in (repo / "README.md").read_text()
    assert "(docs/overload.md)" in (repo / "README.md").read_text()
