"""Pages that load nothing when they are read: one template, its style, its scripts and a policy that admits no other.

Jinja escapes all text, figure data cannot close its script element, and a content security policy lets only the page's
own two scripts run, by their hashes. What a page shows is up to its own module.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, content: Mapping[str, Any], filters: Mapping[str, Any]) -> str:
    """The whole page of a template that extends `base.html.j2`."""
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {**filters, "script_json": script_json}
    script, style = ((TEMPLATES / name).read_text() for name in ("report.js", "report.css"))
    library = get_plotlyjs()
    return environment.get_template(template).render(
        **content, library=Markup(library), script=Markup(script), style=Markup(style),
        hashes=[script_hash(library), script_hash(script)])


def write_page(target: Path, text: str) -> Path:
    """Write the page and return its path. It appears whole or not at all."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # mkstemp's 0600 would keep a shared report to its writer
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def script_json(text: str) -> Markup:
    """JSON that cannot close its script element or open a comment in it."""
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def script_hash(script: str) -> str:
    """A script's name in the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
