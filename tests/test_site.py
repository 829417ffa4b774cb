"""The documentation builds as a site, without a warning and without a page left out."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / ".ci" / "mkdocs.yml"


def test_every_page_is_in_the_contents():
    named = re.findall(r"^      - (\w+\.md)$", CONFIG.read_text(), re.M)
    assert sorted(named) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocstrings") is None,
    reason="needs the packages of keras-dlopt[docs]",
)
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict"),
            *("-f", str(CONFIG), "-d", str(tmp_path / "site")),
        ],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reference = (tmp_path / "site" / "api.html").read_text()
    assert 'id="keras_dlopt.report.compare"' in reference
    assert "&gt;&gt;&gt;" in reference
