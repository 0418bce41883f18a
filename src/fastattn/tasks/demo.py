"""The two small demo models that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from fastattn.errors import ConfigError

_FOLDERS = {"text-generation": "gpt2-litbank", "text-classification": "bert-sst2"}


def demo_model(task: Literal["text-generation", "text-classification"]) -> Path:
    """Return the folder of the demo model for a task; raise ConfigError if it is not installed."""
    folder = Path(str(resources.files("fastattn"))) / "demo" / _FOLDERS[task]
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model: expected a folder or a hub id, because there is no demo model in {folder}; got None")
    return folder
