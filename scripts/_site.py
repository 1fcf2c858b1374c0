"""A hook of mkdocs: formulas become MathML, which browsers draw without a script, and roles of docstrings plain code."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Draws the formulas that stand in blocks of their own."""
    return re.sub(
        r"```math\n(.*?)```", lambda block: convert(block[1].strip(), display="block"), markdown, flags=re.DOTALL
    )


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Draws the formulas of docstrings, and shows the names in them as code."""
    content = re.sub(
        r":math:<code>(.*?)</code>", lambda found: convert(html.unescape(found[1])), content, flags=re.DOTALL
    )
    content = re.sub(r":(?:func|class|meth|mod):<code>~?(.*?)</code>", r"<code>\1</code>", content)
    if left := re.search(r":\w+:<code>", content):
        raise PluginError(f"{page.file.src_path}: {left[0]} would be shown as it is")
    return content
