"""Which of several instances is the one: it holds a lease in a bucket, and renews it."""
