"""A log in a stream with one fenced writer: epochs, replay, checkpoints, group commit.

Whoever appended the newest epoch record is the writer. Every append of a record carries the sequence of its writer's
epoch record, and the server refuses it once there is a newer one: who was replaced cannot write, however late it
notices.
"""
