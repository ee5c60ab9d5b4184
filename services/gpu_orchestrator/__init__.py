"""Knows how much of this machine's GPUs and memory is used, and by whom, by looking at them now."""
