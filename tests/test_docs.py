"""Pages say what the code does: generated parts are up to date, and what a page names exists."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))
NAMES = r"(?:`[\w.]+`(?:,\s+|\s+and\s+)?)+"
NAMED = (re.compile(rf"(?P<names>{NAMES})\s+in\s+`(?P<file>[\w/]+\.py)`"),
         re.compile(rf"\(`(?P<file>[\w/]+\.py)`,\s+(?P<names>{NAMES})"),
         re.compile(r"`(?P<file>[a-z_]+/[a-z_]+)\.(?P<names>[\w.]+)`"))
"""The three ways a page names code: `name` in `file.py`, (`file.py`, `name`) and `folder/file.name`."""


@pytest.fixture
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_generated_page_is_up_to_date(generate):
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run: make docs"


def test_a_generated_part_that_drifted_is_noticed_and_the_rest_is_left_alone(generate):
    page = (ROOT / "docs/methods/preference-losses.md").read_text(encoding="utf-8")
    drifted = page.replace("`beta` 0.1 (> 0)", "`beta` 0.2 (> 0)", 1).replace("# Preference losses", "# Mine", 1)
    assert generate.method_page(drifted) == page.replace("# Preference losses", "# Mine", 1) != drifted


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_each_function_that_a_page_names_is_in_the_file_it_names(path):
    found = [match for pattern in NAMED for match in pattern.finditer(path.read_text(encoding="utf-8"))
             if not match["names"].endswith(("py", "yaml"))]
    assert len(found) >= 10
    for match in found:
        file = ROOT / "src" / "rlhflab" / (match["file"].removeprefix("src/rlhflab/").removesuffix(".py") + ".py")
        code = file.read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", match["names"]) or [match["names"]]:
            last = name.rpartition(".")[2]
            assert re.search(rf"(def|class) {last}\b|^ *{last}\b.*[:=]", code, re.MULTILINE), f"{file}: {name}"
