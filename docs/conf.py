"""The settings of the documentation site: `make docs` builds it into build/site."""

from __future__ import annotations

import sys
from pathlib import Path

import fastattn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "fastattn"
author = "The fastattn authors"
copyright = author
version = release = fastattn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "checkout_links",
    "command_line",
    "plain_docstrings",
]
exclude_patterns = ["_ext"]
nitpicky = True
smartquotes = False  # quotes are part of code

myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "checkout": None}
myst_enable_extensions = ["colon_fence", "deflist"]

# The page about other libraries needs none of them but scikit-learn.
autodoc_mock_imports = [
    "bertopic",
    "chromadb",
    "dask",
    "keybert",
    "langchain_core",
    "llama_index",
    "lm_eval",
    "pyspark",
    "ray",
]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and types in words; signatures stay short
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
add_module_names = False
# Links to other sites are not made at build time, so a build needs no network.
intersphinx_mapping: dict[str, tuple[str, None]] = {}

html_theme = "furo"
html_title = "fastattn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
pygments_style = "default"
pygments_dark_style = "github-dark"
