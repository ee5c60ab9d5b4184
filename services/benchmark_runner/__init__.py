"""Measures engines for real, and keeps what came out."""
