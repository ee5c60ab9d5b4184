"""NATS and JetStream behind a small typed interface. No service calls nats-py.

`bus.py` is what services speak: contracts in, contracts out. It stands on a `Transport` (bytes in, bytes out), of which
there are two: `transport_nats.py`, the real one, and `transport_memory.py`, its twin for tests. One suite of contract
tests holds both to the same behaviour.
"""
