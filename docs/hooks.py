"""What mkdocs does not do by itself: texts of the repository's root as pages, and formulas that need no script."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
NAMES = {file: page for page, file in PAGES.items()}
FORMULA = re.compile(r'class="arithmatex">\\([(\[])(.*?)\\[)\]]', re.DOTALL)


def on_page_markdown(markdown, page, **_):
    """The text of a file at the root, whose links are the site's."""
    if page.file.src_uri not in PAGES:
        return markdown
    text = (ROOT / PAGES[page.file.src_uri]).read_text()
    return re.sub(r"\]\((?:docs/)?([^)#:]+)", lambda link: f"]({NAMES.get(link[1], link[1])}", text)


def on_page_content(content, **_):
    """LaTeX as MathML, which browsers show without fetching anything."""

    def formula(found: re.Match) -> str:
        display = "block" if found[1] == "[" else "inline"
        return f'class="arithmatex">{convert(html.unescape(found[2]), display=display)}'

    return FORMULA.sub(formula, content)
