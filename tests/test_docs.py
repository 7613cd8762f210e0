"""Pages say what the code does: generated parts are up to date, and what a page names exists."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))
NAMED = re.compile(r"((?:`[\w.]+`(?:,\s+|\s+and\s+)?)+)\s+in\s+`(src/[\w/.]+)`")


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
    found = NAMED.findall(path.read_text(encoding="utf-8"))
    assert found
    for names, file in found:
        code = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", code), f"{file} has no {name}"
