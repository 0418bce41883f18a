"""The public model API: the Auto classes, the models that they load, and `quantize`."""
