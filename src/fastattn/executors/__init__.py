"""What runs a Program: the C++ engine, CUDA, and the float64 specification in numpy."""
