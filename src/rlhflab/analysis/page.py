"""One self-contained HTML page from a template: nothing is loaded when it is read. What it says is up to the caller.

Text on a page is text nobody vouches for. Jinja escapes all of it, figure data cannot close its script element, and a
content security policy lets only the page's own two scripts run, by their hashes.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup

from rlhflab.analysis.figures import short, spoken
from rlhflab.core.stats import Estimate

TEMPLATES = Path(__file__).parent / "templates"
LINKS = ("https://", "http://", "mailto:")
"""What a link in somebody's text may lead to."""


def render_page(template: str, values: Mapping[str, Any], *, filters: Mapping[str, Callable[..., Any]]) -> str:
    """The whole page. `template` extends `page.html.j2`, which needs `title`, `name` and `lead` among the values."""
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"spoken": spoken, "signed": signed, "short": short, "cell": cell, "plain": plain,
                            "script_json": script_json, **filters}
    script, style = ((TEMPLATES / name).read_text() for name in ("report.js", "report.css"))
    library = get_plotlyjs()
    return environment.get_template(template).render(
        **values, library=Markup(library), script=Markup(script), style=Markup(style),
        hashes=[script_hash(library), script_hash(script)])


def write_page(target: Path, text: str) -> Path:
    """Write the page, whole or not at all, and return its path."""
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


def signed(change: Estimate) -> str:
    """A change with its sign: `+0.310 [0.262, 0.358], n = 128`."""
    return ("+" if change.mean > 0 else "") + spoken(change)


def plain(name: str) -> str:
    """`abstention_recall` in words."""
    return name.replace("_", " ")


def cell(value: Estimate, *, sign: bool = False) -> Markup:
    """A mean with its interval and count below it, for a table."""
    mean, _, rest = (signed(value) if sign else spoken(value)).partition(" ")
    return Markup("{}<small>{}</small>").format(mean, rest)


def script_json(text: str) -> Markup:
    """JSON that cannot close its script element or open a comment in it."""
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def script_hash(script: str) -> str:
    """A script's name in the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def markdown(text: str, *, breaks: bool = False) -> Markup:
    """Text as HTML below the page's own headings. Raw HTML stays text; images, which would be loaded, are off.

    Links lead to web and mail addresses only, and what they open learns nothing of this page. `breaks`: a line of the
    text is a line on the page.
    """
    reader = _reader(breaks)
    tokens = reader.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrs |= {"rel": "noopener noreferrer nofollow", "target": "_blank"}
    return Markup(reader.renderer.render(tokens, reader.options, {}))


@cache
def _reader(breaks: bool) -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": breaks}).enable("table").disable("image")
    reader.validateLink = lambda url: url.lower().startswith(LINKS)  # type: ignore[method-assign]
    return reader
