"""The real transport: nats-py and nats-server, one life per connection (docs/decisions/0004)."""
