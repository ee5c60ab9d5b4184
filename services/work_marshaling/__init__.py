"""Owns every item of work from submission to its one outcome. Decides who runs it and when; never runs it."""
