"""A markdown page as one HTML file that needs nothing else: for mail, a ticket or an archive."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.rules_inline import StateInline

BREAK = "<br>"
_STYLE = """
:root { color-scheme: light dark; --line: #7d859050; --ink: #1f2328; --page: #ffffff; --code: #7d859018; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --page: #0d1117; } }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: start; }
td[style*="right"] { white-space: nowrap; }
code { background: var(--code); padding: .1rem .3rem; border-radius: 4px; }
pre { background: var(--code); padding: .8rem; overflow-x: auto; } pre code { background: none; padding: 0; }
img { max-width: 100%; height: auto; }
"""


def html_page(markdown: str, title: str) -> str:
    """The page; HTML in the markdown but `<br>` is shown as text, and pictures must be in it as data."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.inline.ruler.before("autolink", "line_break", _line_break)
    parser.validateLink = lambda url: url.startswith(("http://", "https://", "data:image/png;base64,", "#"))  # type: ignore[method-assign]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{parser.render(markdown)}</body>\n</html>\n"
    )


def _line_break(state: StateInline, silent: bool) -> bool:
    """A rule of markdown-it for `<br>`, which cells of tables have instead of line ends."""
    if not state.src.startswith(BREAK, state.pos):
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos += len(BREAK)
    return True
