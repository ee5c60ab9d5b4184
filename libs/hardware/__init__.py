"""What a machine has, read from its real sources. A source that is missing or broken costs its field, not the answer.

`inspector.py` brings the sources together. Everything that can block runs beside the event loop, and NVML, whose calls
can hang for good, in a process of its own.
"""
