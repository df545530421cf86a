"""Sphinx's configuration; `make docs` builds the site, and every warning is an error."""

import sys
from pathlib import Path

import sam2_3dmed

sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

project = "SAM2-3dMed"
author = "SAM2-3dMed contributors"
copyright = "SAM2-3dMed contributors"
version = release = sam2_3dmed.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "measurements",
    "code_reference",
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "SAM2-3dMed"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
