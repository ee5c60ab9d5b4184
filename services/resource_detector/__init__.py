"""Knows what this machine has, by looking. Tells it, and that it is alive; decides nothing about its use."""
