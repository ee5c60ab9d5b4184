"""What the agent and a process that calls functions agree on. Kept light, for the process's sake."""

END_OF_OUTPUT = b"\0mesh: end of output\0"
"""Written after everything that a function printed."""
LARGEST_RESULT = 33 * 1024 * 1024
"""Bytes of a result that the process still tells; what the mesh takes is less."""
