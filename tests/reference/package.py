"""The location of the tested package, for tests that start a separate Python.

It is the package that the tests imported: an installed one, or one on PYTHONPATH.
"""

from __future__ import annotations

import os
from pathlib import Path

import fastattn

SOURCES = Path(fastattn.__file__).resolve().parents[1]
# For a Python that imports the same package.
PYTHON_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCES)}
