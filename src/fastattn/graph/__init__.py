"""Symbolic tensors, the Program they record, its rewrites and its cost."""
