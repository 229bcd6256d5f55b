"""Load any decoder of transformers and know its layers, chat template and special tokens.

Must not know SAEs or labels. A `LanguageModel` is the only handle on a model that other rooms get.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("tagsteer.lm")

EMBEDDED = "smollm2-135m-instruct"
# Where transformers' decoders keep their list of layers and final norm, by family.
_LAYER_PATHS = (
    "model.layers",
    "transformer.h",
    "gpt_neox.layers",
    "model.decoder.layers",
    "model.language_model.layers",
)
_NORM_PATHS = (
    "model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.decoder.final_layer_norm",
    "model.language_model.norm",
)


@dataclass(frozen=True)
class Device:
    """Where and in which precision to compute, and why it was chosen."""

    name: str
    dtype: str
    reason: str


def choose_device(device: str = "auto", dtype: str = "auto") -> Device:
    """CUDA with bfloat16, then Apple's MPS, then the CPU with float32; explicit values win.

    float32 on CPUs: without bf16 instructions a CPU multiplies bf16 three times slower than fp32.
    """
    import torch

    reasons = []
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
            reasons.append(f"CUDA found ({torch.cuda.get_device_name(0)})")
        elif torch.backends.mps.is_available():
            device = "mps"
            reasons.append("no CUDA, Apple MPS found")
        else:
            device = "cpu"
            reasons.append("no CUDA and no MPS")
    else:
        reasons.append(f"device {device} asked for")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise TagsteerError(
                f"device {device!r} was asked for but torch sees no CUDA device; use device = 'cpu'"
            )
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
        reasons.append(f"{dtype} is the default there")
    else:
        reasons.append(f"{dtype} asked for")
        if not hasattr(torch, dtype) or not isinstance(getattr(torch, dtype), torch.dtype):
            raise TagsteerError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float16")
    return Device(device, dtype, ", ".join(reasons))


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder with its tokenizer; `layers[l]` is a plain module whose output is the residual stream after l."""

    name: str
    hf: Any
    """The transformers model."""
    tokenizer: Any
    device: torch.device
    """Device of the embeddings; a sharded model has others further up."""
    dtype: torch.dtype

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, found by the module paths of transformers' families."""
        return _first_at(self.hf, _LAYER_PATHS, "decoder layers")

    @cached_property
    def final_norm(self) -> nn.Module:
        """The norm between the last layer and the unembedding."""
        return _first_at(self.hf, _NORM_PATHS, "final norm")

    @property
    def unembedding(self) -> nn.Module:
        """The module from normed residual to logits."""
        return self.hf.get_output_embeddings()

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def d_model(self) -> int:
        return self.hf.get_input_embeddings().weight.shape[1]

    @property
    def vocab_size(self) -> int:
        return self.hf.get_output_embeddings().weight.shape[0]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Token ids that never count as text: BOS, EOS, padding, chat marks."""
        return frozenset(self.tokenizer.all_special_ids)

    @property
    def pad_id(self) -> int:
        """Padding id; any id does, since padding is always masked."""
        tok = self.tokenizer
        return next((i for i in (tok.pad_token_id, tok.eos_token_id, tok.bos_token_id) if i is not None), 0)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a generation: the generation config's, else the tokenizer's."""
        ids = self.hf.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def layer_index(self, layer: int | str) -> int:
        """Resolve 12, "12", "blocks.12.hook_resid_post" or "model.layers.12" to a layer of this model."""
        found = re.fullmatch(r"(?:.*\.)?(\d+)(?:\.hook_resid_post)?", str(layer))
        if not found:
            raise TagsteerError(
                f"cannot read a layer from {layer!r}: give a number, 'blocks.12.hook_resid_post' or 'model.layers.12'"
            )
        index = int(found.group(1))
        if index >= self.n_layers:
            raise TagsteerError(
                f"layer {index} is out of range: {self.name} has layers 0 to {self.n_layers - 1}"
            )
        return index

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text with the tokenizer's own BOS; marks like <|im_start|> in it stay plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of many plain texts, cut to `max_tokens`; special-token text in them is not parsed."""
        cut = {} if max_tokens is None else {"truncation": True, "max_length": max_tokens}
        # Without texts some tokenizers raise instead of returning nothing.
        return self.tokenizer(list(texts), split_special_tokens=True, **cut)["input_ids"] if texts else []

    def chat_ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation [(role, text), ...] in the model's chat template, ready for its answer.

        Texts are tokenised apart from the template, so marks that they contain stay plain text. A model
        without a template gets the texts joined by blank lines, after its BOS.
        """
        if not self.tokenizer.chat_template:
            return self.encode("\n\n".join(text for _, text in messages))
        stand_ins = [f"\u27e6text{i}\u27e7" for i in range(len(messages))]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": role, "content": mark} for (role, _), mark in zip(messages, stand_ins, strict=True)],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids: list[int] = []
        for mark, (_, text) in zip(stand_ins, messages, strict=True):
            before, found, rendered = rendered.partition(mark)
            if not found:
                raise TagsteerError(
                    f"the chat template of {self.name} drops a message; give another template"
                )
            ids += self.tokenizer(before, add_special_tokens=False)["input_ids"]
            ids += self.tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
        return ids + self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as readable text by itself, blanks included."""
        return [self.tokenizer.decode([i]) for i in ids]


def load_model(
    name: str = EMBEDDED, device: str = "auto", dtype: str = "auto", device_map: str | None = None
) -> LanguageModel:
    """Load the embedded model by name, a hub id, or a local folder; never runs code from the repository.

    `device_map="auto"` shards a model over several GPUs (needs accelerate).
    """
    import torch
    import transformers

    where = choose_device(device, dtype)
    source = _resolve(name)
    kwargs: dict[str, Any] = {"dtype": getattr(torch, where.dtype), "trust_remote_code": False}
    if device_map:
        kwargs["device_map"] = device_map
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with _without_their_bar():
            hf: Any = transformers.AutoModelForCausalLM.from_pretrained(source, **kwargs)
    except (OSError, ValueError) as error:
        raise TagsteerError(
            f"cannot load model {name!r}: {str(error).splitlines()[0]}; wanted {EMBEDDED!r}, a hub id, or a folder "
            "with config.json, tokenizer and safetensors"
        ) from error
    if not device_map:
        hf = hf.to(torch.device(where.name))
    hf.requires_grad_(False).eval()
    model = LanguageModel(name, hf, tokenizer, hf.get_input_embeddings().weight.device, kwargs["dtype"])
    bos = tokenizer.bos_token if model.encode("a")[:1] == [tokenizer.bos_token_id] else None
    log.info(
        "%s: %d layers, d_model %d, on %s in %s (%s); chat template: %s; BOS on plain text: %s",
        *(name, model.n_layers, model.d_model, where.name, where.dtype, where.reason),
        *("the tokenizer's own" if tokenizer.chat_template else "none", bos or "none"),
    )
    return model


@contextmanager
def _without_their_bar() -> Iterator[None]:
    """No bar of transformers' between ours: it writes to stderr without being asked."""
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


def _resolve(name: str) -> str:
    """Folder of the embedded model, a local folder, or the hub id unchanged."""
    if name == EMBEDDED:
        from tagsteer.assets.smollm2 import smollm2_folder

        return str(smollm2_folder())
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        raise TagsteerError(
            f"{path} holds no config.json: give a folder saved by transformers' save_pretrained"
        )
    if not path.is_dir() and (
        path.is_absolute() or name.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    ):
        raise TagsteerError(
            f"no model folder at {name!r}; give {EMBEDDED!r}, a hub id like 'google/gemma-2-2b', or a folder"
        )
    return str(path) if path.is_dir() else name


def _first_at(root: Any, paths: Sequence[str], what: str) -> Any:
    for path in paths:
        module = root
        for part in path.split("."):
            module = getattr(module, part, None)
            if module is None:
                break
        else:
            return module
    raise TagsteerError(
        f"no {what} found in {type(root).__name__} (looked at {', '.join(paths)}); this family is not known yet"
    )
