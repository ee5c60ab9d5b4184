"""What is killed, stopped, filled and repeated, and a count of what became of the work: `docs/faults.md`."""
