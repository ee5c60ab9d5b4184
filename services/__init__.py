"""The seven services. They never import one another: they speak over NATS."""
