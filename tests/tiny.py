"""Tiny random models of several families, and a byte tokenizer: no downloads, milliseconds to build."""

from __future__ import annotations

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tagsteer.lm.model import LanguageModel

D_MODEL, N_LAYERS, N_HEADS = 32, 4, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<bos>", "<|end|>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]


def tiny_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer (256 bytes and 6 marks), with BOS added to plain text if `bos`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(SPECIAL + alphabet)}, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    if bos:
        tok.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<bos>",
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, bos: bool = True, seed: int = 0
) -> LanguageModel:
    """A random decoder of `family` (llama, gemma2, gpt2, qwen2, gpt_neox, mistral), evaluated on the CPU."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(bos)
    vocab = len(tokenizer)
    common = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    modern = {
        "hidden_size": D_MODEL, "intermediate_size": 64, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
        "num_key_value_heads": 1, "max_position_embeddings": 512, **common,
    }  # fmt: skip
    config = {
        "llama": lambda: transformers.LlamaConfig(**modern),
        "mistral": lambda: transformers.MistralConfig(**modern),
        "qwen2": lambda: transformers.Qwen2Config(**modern),
        "gemma2": lambda: transformers.Gemma2Config(**modern, head_dim=16, query_pre_attn_scalar=16),
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, n_positions=512, **common
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(
            **{k: v for k, v in modern.items() if k != "num_key_value_heads"}
        ),
    }[family]()
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype)
    hf.requires_grad_(False).eval()
    return LanguageModel(f"tiny-{family}", hf, tokenizer, torch.device("cpu"), dtype)
