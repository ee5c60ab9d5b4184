"""Knows which engines serve which models where. Starts none yet."""
