"""The direction of imports, the length of functions, and a docstring at the top of every module."""

import ast
from pathlib import Path

import rlhflab

ROOT = Path(rlhflab.__file__).parent
ORDER = ["core", "model", "rollout", "train", "analysis", "runs", "app", "commands", "cli", "__main__"]
LIGHT = {"errors": set(), "progress": set(), "catalog": {"errors"}, "presets": {"catalog", "errors"},
         "config": {"errors", "presets"}, "data": {"catalog", "errors"},
         "scenarios": {"data", "catalog", "errors"}, "registry": {"data", "config", "errors"},
         "suites": {"data", "config", "errors", "scenarios"},
         "listing": {"catalog", "config", "errors", "presets", "scenarios", "suites"}}
HEAVY = {"torch", "transformers", "peft"}
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def layer_of(path):
    return path.parts[0].removesuffix(".py")


def imports(tree):
    """Dotted names of what a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the layer"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_import_points_down():
    wrong = []
    for path, tree in TREES.items():
        layer = layer_of(path)
        assert layer in {"__init__", *ORDER, *LIGHT}, f"{path}: which layer is this?"
        below = LIGHT[layer] if layer in LIGHT else {*LIGHT, *ORDER[:ORDER.index(layer)]} if layer in ORDER else set()
        for name in imports(tree):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "rlhflab" and target not in {layer, "__version__", *below}:
                wrong.append(f"{path} imports {name}")
            if package in HEAVY and layer in LIGHT:
                wrong.append(f"{path} imports {name}: it is to work without torch")
    assert not wrong, "\n".join(wrong)


def test_no_function_is_longer_than_eighty_lines():
    functions = ((path, node) for path, tree in TREES.items() for node in ast.walk(tree)
                 if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    assert not [f"{path}:{node.lineno} {node.name}" for path, node in functions if node.end_lineno - node.lineno >= 80]


def test_every_module_opens_with_a_docstring():
    assert not [str(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
