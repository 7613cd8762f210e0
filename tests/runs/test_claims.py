"""Claims of several processes on one part of their work."""

from pathlib import Path

from rlhflab.runs.claims import claim


def test_what_one_holds_another_does_not_get(tmp_path: Path) -> None:
    path = tmp_path / "seed-0" / ".hack.lock"
    with claim(path, wait=False) as first, claim(path, wait=False) as second:
        assert (first, second) == (True, False)
    with claim(path, wait=False) as again:
        assert again
