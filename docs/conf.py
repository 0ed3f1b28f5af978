"""Configuration of the documentation: `make docs` builds it into docs/_build/html."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

project = "YOLOv4-MobileNet"
author = "the contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated_pages"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which are not pages
html_theme = "furo"
html_title = "YOLOv4-MobileNet"
html_copy_source = html_show_sourcelink = False
html_static_path: list[str] = []
autodoc_typehints = "none"  # types stand in the signature
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
