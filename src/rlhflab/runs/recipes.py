"""Where the recipes are: beside the source in a checkout, inside the package where it was installed."""

from pathlib import Path

from rlhflab.errors import ConfigError


def recipe_folder() -> Path:
    """The folder with one run file a method."""
    here = Path(__file__)
    for folder in (here.parents[3] / "recipes", here.parents[1] / "recipes"):
        if (folder / "sft.yaml").is_file():
            return folder
    raise ConfigError("the recipes are neither in the checkout nor in the installed package")


def recipe(kind: str) -> Path:
    """The run file of the method `kind`."""
    return recipe_folder() / f"{kind}.yaml"
