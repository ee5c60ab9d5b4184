"""Builds the test model: a Llama with random weights of 1.5 MB, the same bytes every time.

`python -m services.node_agent.tiny_model OUT`. It answers nonsense; it is there so that the whole path from a submitted
item to an engine's tokens can be tried on a machine that has no model yet.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 2, 128, 4, 2, 256, 4096
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", "and", "ing", "tion", "node", "mesh", "token", "work", "lat", "en", "cy", "model", "comp", "ute")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_letters() -> list[str]:
    """The 256 letters by which GPT-2's byte-level vocabulary writes bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: every byte, and a few words so that merging is exercised."""
    tokens = [*SPECIAL, *_byte_letters()]
    merges: list[str] = []
    for word in (*WORDS, *("\u0120" + word for word in WORDS)):
        start = word[0]
        for letter in word[1:]:
            if start + letter not in tokens:
                merges.append(f"{start} {letter}")
                tokens.append(start + letter)
            start += letter
    while len(tokens) % 32:
        tokens.append(f"<|unused{len(tokens)}|>")
    return tokens, merges


def _describe(writer: gguf.GGUFWriter, name: str, tokens: list[str], merges: list[str]) -> None:
    writer.add_name(name)
    writer.add_description("Random weights for tests: it answers nonsense.")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if _unwritten(token) else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(3)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _unwritten(token: str) -> bool:
    return token in SPECIAL or token.startswith("<|unused")


def _weights(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    random = np.random.default_rng(20)

    def drawn(*shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        return (random.standard_normal(shape) * 0.05).astype(np.float32)

    output = drawn(len(tokens), WIDTH)
    output[[place for place, token in enumerate(tokens) if _unwritten(token)]] = 0
    name = _tensor_name
    kind = gguf.MODEL_TENSOR
    writer.add_tensor(name(kind.TOKEN_EMBD), drawn(len(tokens), WIDTH))
    writer.add_tensor(name(kind.OUTPUT_NORM), np.ones(WIDTH, np.float32))
    writer.add_tensor(name(kind.OUTPUT), output)
    for layer in range(LAYERS):
        writer.add_tensor(name(kind.ATTN_NORM, layer), np.ones(WIDTH, np.float32))
        writer.add_tensor(name(kind.FFN_NORM, layer), np.ones(WIDTH, np.float32))
        for part, shape in _shapes(kind):
            writer.add_tensor(name(part, layer), drawn(*shape))


def _shapes(kind: type[gguf.MODEL_TENSOR]) -> list[tuple[gguf.MODEL_TENSOR, tuple[int, int]]]:
    head = WIDTH // HEADS
    return [
        (kind.ATTN_Q, (HEADS * head, WIDTH)),
        (kind.ATTN_K, (KV_HEADS * head, WIDTH)),
        (kind.ATTN_V, (KV_HEADS * head, WIDTH)),
        (kind.ATTN_OUT, (WIDTH, HEADS * head)),
        (kind.FFN_GATE, (FEED_FORWARD, WIDTH)),
        (kind.FFN_UP, (FEED_FORWARD, WIDTH)),
        (kind.FFN_DOWN, (WIDTH, FEED_FORWARD)),
    ]


def _tensor_name(kind: gguf.MODEL_TENSOR, layer: int | None = None) -> str:
    return str(gguf.TENSOR_NAMES[kind].format(bid=layer)) + ".weight"


def _write(path: Path, name: str) -> None:
    tokens, merges = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, name, tokens, merges)
    _weights(writer, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` make a file beside `path`, and put it in place when it is whole and on disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write(unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda unfinished: _write(unfinished, path.stem))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
