"""Each claim about speed as a program that anyone can run."""
