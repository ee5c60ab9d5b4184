"""What is known about models and engines without asking any: requests, answers, memory. Pure."""
