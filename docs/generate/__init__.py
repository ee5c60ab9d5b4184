"""Writes the references under `docs/reference` from the code itself, and the recorded samples of new messages.

The same code gives the same bytes: no times, no facts of the machine it runs on.
"""
