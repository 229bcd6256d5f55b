"""A judge on this machine: any chat model of transformers, asked by the same rubric.

May import torch; must not know SAEs. Replies do not depend on the batch: greedy, or sampled with a generator
per question, seeded by the question's key.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tagsteer.errors import TagsteerError
from tagsteer.judge.rubric import load_rubric
from tagsteer.judge.sheet import Sheet
from tagsteer.judge.store import JudgementStore, Question, Reply
from tagsteer.judge.types import JudgeItem, Rating
from tagsteer.progress import track

if TYPE_CHECKING:
    import torch

    from tagsteer.lm.model import LanguageModel

log = logging.getLogger("tagsteer.judge")

LEASE_S = 3600.0
POLL_S = 0.2


class LocalJudge:
    """Rates with a `LanguageModel`; without a `store`, answers are kept for the life of the object."""

    def __init__(
        self,
        model: LanguageModel,
        store: JudgementStore | None = None,
        *,
        few_shot: bool = False,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        batch_size: int = 8,
        asks: int = 3,
        seed: int = 0,
    ) -> None:
        for value, least, what in (
            (max_new_tokens, 1, "max_new_tokens"),
            (batch_size, 1, "batch_size"),
            (asks, 1, "asks"),
        ):
            if value < least:
                raise TagsteerError(f"{what} = {value!r} of the local judge must be at least {least}")
        if temperature < 0:
            raise TagsteerError(
                f"temperature = {temperature!r} of the local judge must be 0 (greedy) or more"
            )
        self.model, self.rubric = model, load_rubric(few_shot)
        self.temperature, self.max_new_tokens, self.batch_size, self.seed = (
            temperature,
            max_new_tokens,
            batch_size,
            seed,
        )
        if store is None:
            store = JudgementStore(":memory:")
            weakref.finalize(self, store.close)
        self.store = store
        # A greedy model says the same again.
        self.asks = asks if temperature > 0 else 1

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def version(self) -> str:
        return self.rubric.version

    def describe(self) -> str:
        """Model, rubric and sampling, for tables."""
        how = f"temperature {self.temperature:g}, seed {self.seed}" if self.temperature else "greedy"
        return f"{self.name} (local), rubric {self.version}, {how}"

    @property
    def _parameters(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return chosen | ({"seed": self.seed} if self.temperature else {}) | {"dtype": str(self.model.dtype)}

    def rate(self, items: Sequence[JudgeItem]) -> Iterator[tuple[str, Rating]]:
        """Ratings as their batches end; what the store holds comes first."""
        sheet = Sheet(items, self.rubric, f"local:{self.name}", self._parameters, self.describe())
        owner = uuid.uuid4().hex
        with track("judging", total=len(items), unit="texts") as bar:

            def settle(key: str) -> Iterator[tuple[str, Rating]]:
                outcome = self.store.outcome(key, self.asks)
                if outcome is None:
                    todo.appendleft(key)
                    return
                for item in sheet.settle(key, outcome.rating, outcome.reason):
                    bar.advance()
                    yield item

            todo: deque[str] = deque()
            for key in sheet.open_keys():
                yield from settle(key)
            # Like lengths together: padding costs as much as text.
            todo = deque(sorted(todo, key=lambda key: len(sheet.question(key).prompt)))
            try:
                while todo:
                    batch, busy = self._claim_batch(sheet, todo, owner)
                    if batch:
                        for question, reply in zip(batch, self._replies(batch), strict=True):
                            self.store.add(question, reply, owner)
                            yield from settle(question.key)
                    elif busy:
                        time.sleep(POLL_S)
                    for key in busy:
                        yield from settle(key)
            finally:
                self.store.release_all(owner)

    def _claim_batch(self, sheet: Sheet, todo: deque[str], owner: str) -> tuple[list[Question], list[str]]:
        """The next questions that are ours to answer, and those that are settled or another process has."""
        batch: list[Question] = []
        others: list[str] = []
        while todo and len(batch) < self.batch_size:
            question = sheet.question(todo.popleft())
            if self.store.claim(question, owner, asks=self.asks, lease_s=LEASE_S) == "mine":
                batch.append(question)
            else:
                others.append(question.key)
        return batch, others

    def _replies(self, batch: list[Question]) -> list[Reply]:
        """The replies to a batch; when memory runs out, in halves from then on."""
        import torch

        try:
            return self._generate(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise TagsteerError(
                    f"{self.name} runs out of memory on one question: take a smaller model or max_new_tokens"
                ) from error
        half = len(batch) // 2
        self.batch_size = min(self.batch_size, half)
        log.warning("out of memory with %d questions at once: going on with %d", len(batch), self.batch_size)
        torch.cuda.empty_cache()
        return self._replies(batch[:half]) + self._replies(batch[half:])

    def _generate(self, batch: list[Question]) -> list[Reply]:
        """Generate replies, padded on the left."""
        import torch
        from transformers import GenerationConfig

        model = self.model
        prompts = [model.chat_ids([("user", question.prompt)]) for question in batch]
        longest = max(map(len, prompts))
        ids = torch.tensor(
            [[model.pad_id] * (longest - len(p)) + p for p in prompts], device=model.device
        )  # (rows, tokens)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        # All that could change a reply is named, or transformers takes it from the model's own configuration.
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            pad_token_id=model.pad_id,
            eos_token_id=sorted(model.eos_ids) or None,
        )
        noise = [self._noise(batch)] if self.temperature else []
        with torch.inference_mode():
            out = model.hf.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=noise
            )
        return [
            self._reply(row, len(prompt))
            for row, prompt in zip(out[:, longest:].tolist(), prompts, strict=True)
        ]

    def _reply(self, new: list[int], tokens_in: int) -> Reply:
        """Cut a row of new ids at its first end mark; without one it ran into the limit."""
        ends = [place for place, token in enumerate(new) if token in self.model.eos_ids]
        kept = new[: ends[0]] if ends else new
        return Reply(
            self.model.decode(kept),
            "stop" if ends else "length",
            tokens_in,
            len(kept),
            served_by="this machine",
        )

    def _noise(self, batch: list[Question]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Greedy decoding becomes sampling: argmax(logits/T + Gumbel noise) is a draw from softmax(logits/T).

        The generator of a row is seeded by the question's key, the seed, and how often it was asked.
        """
        import torch

        generators = []
        for question in batch:
            asked = len(self.store.answers(question.key))
            digest = hashlib.sha256(f"{question.key} {self.seed} {asked}".encode()).digest()
            generators.append(torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big")))

        def add_noise(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            uniform = torch.stack(
                [torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in generators]
            )
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))  # (rows, vocabulary)
            return scores.float() / self.temperature + gumbel.to(scores.device, torch.float32)

        return add_noise
