"""How fast the machine, fastattn and other libraries are: the command `fastattn bench`.

Every library runs in a process of its own (`worker`), which the command drives in turns (`turns`), between two
measurements of the machine's limits. Nothing here is imported by the rest of the package but by the command.
"""
