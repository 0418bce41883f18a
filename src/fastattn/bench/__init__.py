"""Measures the speed of the machine, fastattn and other libraries: the command `fastattn bench`.

Each library runs in its own process (`worker`). The command runs them in turns (`turns`), between two measurements of
the machine's limits. The command is the only part of the package that imports this folder.
"""
