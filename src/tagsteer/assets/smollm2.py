"""Turn the embedded model's GGUF file into a transformers folder (safetensors, tokenizer), once.

transformers can read GGUF itself, but takes 25 s each time, loses the tokenizer's single-digit splitting
and cannot save what it loaded. Knows llama.cpp's tensor names and layout; nothing else does.
"""

from __future__ import annotations

import json
from pathlib import Path

from tagsteer.assets.fetch import asset_folder, build_once, fetch
from tagsteer.files import as_others_are

ASSET = "smollm2-135m-instruct"

_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M-Instruct as transformers reads it; fetched and converted at the first call."""
    return build_once(asset_folder(ASSET) / "transformers", lambda target: convert(fetch(ASSET), target))


def convert(gguf_file: Path, target: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors (fp32) and the tokenizer to `target`."""
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    target.mkdir(parents=True)
    _write_config(meta, target)
    _write_tokenizer(meta, target)
    _write_weights(reader.tensors, meta, target)


def _write_config(meta: dict, target: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "vocab_size": meta["llama.vocab_size"],
        "rms_norm_eps": 1e-5,
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }
    (target / "config.json").write_text(json.dumps(config, indent=1))
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=1))


def _write_tokenizer(meta: dict, target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # SmolLM2 splits every digit off before byte-level BPE; GGUF has no field for it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _write_weights(tensors: list, meta: dict, target: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import save_file

    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    state = {}
    for tensor in tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in _GLOBAL_TENSORS:
            name = _GLOBAL_TENSORS[tensor.name]
        else:
            _, block, part, _ = tensor.name.split(".")
            name = f"model.layers.{block}.{_BLOCK_TENSORS[part]}.weight"
            if part in heads:
                # llama.cpp interleaves the two rotary halves of each head; transformers keeps them apart.
                n, rows = heads[part], weight.shape[0]
                weight = weight.reshape(n, rows // n // 2, 2, -1).swapaxes(1, 2).reshape(rows, -1)
        state[name] = torch.from_numpy(weight.copy())
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    as_others_are(target / "model.safetensors")
