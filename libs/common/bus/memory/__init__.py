"""The transport's twin for tests: a server in memory that behaves as the real one does."""
