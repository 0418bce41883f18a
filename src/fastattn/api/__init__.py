"""The public models: the Auto classes, what they load, and quantize."""
