"""NATS and JetStream behind a small typed interface. No service calls nats-py.

`bus.py` is what services speak: contracts in, contracts out. It stands on a `Transport` (bytes in, bytes out), of which
there are two: `nats/`, the real one, and `memory/`, its twin for tests. One suite of contract
tests holds both to the same behaviour.
"""
