"""The location of the tested package, for tests that start a separate Python or type checker.

It is the package that the tests imported: an installed one, or one on PYTHONPATH.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import fastattn

SOURCES = Path(fastattn.__file__).resolve().parents[1]
# For a Python that imports the same package.
PYTHON_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCES)}
# For mypy, which finds installed packages by itself and rejects their folder in MYPYPATH.
INSTALLED = Path(sysconfig.get_path("purelib")).resolve() == SOURCES
MYPY_ENVIRONMENT = {**os.environ} if INSTALLED else {**os.environ, "MYPYPATH": str(SOURCES)}
