"""Knows which machines exist, what they have and whether they are alive. Believes what it hears, when it hears it."""
