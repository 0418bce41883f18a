"""The readers of regular files under the name that the readers of folders use."""

from fastattn.files import open_regular, read_at

__all__ = ["open_regular", "read_at"]
