"""Executors that run a Program: the C++ engine, CUDA, and the float64 specification in numpy."""
