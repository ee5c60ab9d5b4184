"""Prompts of a wanted length, each different, so that no prompt cache answers for the engine."""

from hashlib import sha256

WORDS = (
    *("the", "work", "of", "a", "mesh", "is", "to", "bring", "each", "token", "where", "it", "fits", "and", "node"),
    *("by", "model", "compute", "that", "runs", "in", "time", "for", "many", "small", "machines", "with", "care"),
)
FIRST_GUESS_TOKENS_PER_WORD = 1.3


def prompt(words: int, *, seed: int, number: int) -> str:
    """So many words. The first ones differ between prompts, which keeps prefixes from being shared."""
    drawn = sha256(f"{seed}:{number}".encode()).digest()
    start = [WORDS[byte % len(WORDS)] for byte in drawn[:8]]
    rest = [WORDS[(drawn[8] + place * (1 + drawn[9] % 7)) % len(WORDS)] for place in range(max(0, words - len(start)))]
    return " ".join((start + rest)[: max(1, words)])


def words_for(tokens: int, tokens_per_word: float) -> int:
    """How many words come to about so many tokens."""
    return max(1, round(tokens / max(tokens_per_word, 0.01)))


def tokens_per_word(words: int, tokens_counted: int) -> float:
    """What the engine's tokenizer makes of our words, from one answer's `usage`."""
    return tokens_counted / words if words > 0 and tokens_counted > 0 else FIRST_GUESS_TOKENS_PER_WORD
