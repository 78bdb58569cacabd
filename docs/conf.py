"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent.parent))

import cnnext

project = "cnnext"
author = "The cnnext authors"
version = release = cnnext.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cnnext {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1864ab", "color-brand-content": "#1864ab"},
    "dark_css_variables": {"color-brand-primary": "#5cb0f5", "color-brand-content": "#5cb0f5"},
}
html_static_path = ["static"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "literal"  # of `words` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say more
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Returns"]  # as text: a colon in it does not end a type
html_math_renderer = "mathml"


def _math(display: str) -> Any:
    def visit(translator: Any, node: Any) -> None:
        translator.body.append(convert(node.astext(), display=display))
        raise SkipNode

    return visit, None


def setup(app: Any) -> None:
    """Formulas become MathML, which browsers draw without a script."""
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
