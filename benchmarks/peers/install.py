"""The peers' environments: a virtual environment each, with pinned versions, in a cache folder. No torch here."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PEERS: dict[str, tuple[str, ...]] = {
    "trl": ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2"),
    "trl_ppo": ("trl==1.12.0", "transformers==5.23.0", "peft==0.21.2"),
}
"""What is asked for; everything else is as in constraints.txt."""


def environment(name: str, cache: Path) -> Path:
    """The Python of the peer `name`, installed where it is not there yet."""
    folder, pins = cache / name, "\n".join(PEERS[name])
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.is_file() and ready.read_text() == pins:
        return python
    print(f"Installing {', '.join(PEERS[name])} into {folder} (once) ...", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    others = folder / "constraints.txt"
    others.write_text(constraints(CONSTRAINTS.read_text(), PEERS[name]))
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, stdout=sys.stderr)
    # torch comes first and by its exact version, so that pip takes the build of the index in use.
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    for wanted in ([torch], [*PEERS[name]]):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                        "-c", str(others), *wanted], check=True, stdout=sys.stderr)
    ready.write_text(pins)
    return python


def constraints(text: str, pins: Sequence[str]) -> str:
    """The lines of a constraints file that do not speak of a pinned package."""
    pinned = {pin.partition("==")[0].lower() for pin in pins}
    return "\n".join(line for line in text.splitlines()
                     if not line.startswith("#") and line.partition("==")[0].lower() not in pinned) + "\n"
