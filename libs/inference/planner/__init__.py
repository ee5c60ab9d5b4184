"""What a model needs and what vLLM accepts: facts, bytes, rules. Pure."""
