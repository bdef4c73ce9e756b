"""A real model that is small enough to write in a test: llama architecture, random weights, a few hundred KB.

`python tests/tiny_gguf.py model.gguf` writes a model; with the second argument `embeds`, a model for
embeddings. The model generates random lower-case words and punctuation; equal seeds write equal bytes.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

WORDS = (
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "is",
    "mill",
    "night",
    "grain",
    "stone",
    "water",
    "wheel",
    "slow",
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_LAYERS, _HEADS, _WIDTH, _INNER = 2, 4, 64, 128
_LOUD = 8.0


def _vocabulary() -> tuple[list[bytes], list[int]]:
    special = [(b"<unk>", gguf.TokenType.UNKNOWN), (b"<s>", gguf.TokenType.CONTROL)]
    special.append((b"</s>", gguf.TokenType.CONTROL))
    raw = [(b"<0x%02X>" % byte, gguf.TokenType.BYTE) for byte in range(256)]
    words = [(f"\u2581{word}".encode(), gguf.TokenType.NORMAL) for word in WORDS]
    marks = [(mark.encode(), gguf.TokenType.NORMAL) for mark in "abcdefghijklmnopqrstuvwxyz,.?!\u2581"]
    tokens = special + raw + words + marks
    return [text for text, _ in tokens], [int(kind) for _, kind in tokens]


def write_tiny_gguf(
    path: Path, *, seed: int = 0, context_tokens: int = 2_048, pooling: gguf.PoolingType | None = None
) -> Path:
    chance = np.random.default_rng(seed)
    tokens, kinds = _vocabulary()

    def weights(*shape: int, scale: float = 1.0) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        return (chance.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(place) for place in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)

    spoken = weights(len(tokens), _WIDTH, scale=_LOUD)
    # Only whole words, punctuation and the end token are generated: single bytes would be invalid UTF-8.
    spoken[[kind in (gguf.TokenType.UNKNOWN, gguf.TokenType.BYTE) for kind in kinds]] = 0
    spoken[1] = 0
    writer.add_tensor("token_embd.weight", weights(len(tokens), _WIDTH, scale=_LOUD))
    writer.add_tensor("output_norm.weight", np.ones(_WIDTH, dtype=np.float32))
    writer.add_tensor("output.weight", spoken)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{name}.weight", np.ones(_WIDTH, dtype=np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}{name}.weight", weights(_WIDTH, _WIDTH))
        for name in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"{block}{name}.weight", weights(_INNER, _WIDTH))
        writer.add_tensor(f"{block}ffn_down.weight", weights(_WIDTH, _INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    is_embedding = sys.argv[2:] == ["embeds"]
    write_tiny_gguf(Path(sys.argv[1]), pooling=gguf.PoolingType.MEAN if is_embedding else None)
