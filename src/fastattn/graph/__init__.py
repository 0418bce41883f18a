"""Symbolic tensors, the Program they record, its rewrites and the float64 numpy executor."""
