"""Runs engines and jobs on this machine, and reports what happened. Decides nothing about what runs where."""
