"""Any causal language model of Hugging Face's as a policy of the lab, on what the local backend is made of.

A prompt is read once for all its responses, in sampling (`kv_cache`) as in training (`packing`). Where bfloat16 is
measured to be faster the layers compute in it; head, weights and optimizer stay in float32.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from trinity_rec.lab.policy import Policy, Responses, Scores
from trinity_rec.session.allocator import give_back
from trinity_rec.session.machine import GIB
from trinity_rec.tinker_local.errors import ServeError
from trinity_rec.tinker_local.kv_cache import RaggedCache
from trinity_rec.tinker_local.logprobs import hidden_states, logits_of, pad, token_logprobs_and_entropies
from trinity_rec.tinker_local.model import ServedModel, load, set_weights, weights_of
from trinity_rec.tinker_local.packing import Row, lay_out, passes, rows_of
from trinity_rec.tinker_local.sampling import pick

# Padded tokens whose activations are held at a time; of more, they are computed again for the backward pass. Of a
# model of 135M parameters they take 6 GB on a CPU.
PASS_TOKENS = {"cpu": 5120}
PASS_TOKENS_ELSEWHERE = 16384
LITTLE_MEMORY = 4 * GIB  # so much must stay free of the machine's


class LanguageModel(Policy):
    """A served model's weights, to train or (`frozen`) to sample from.

    Args:
        served: the model as it was loaded.
        frozen: never trained, so that bfloat16 may round its weights once and for all.
    """

    def __init__(self, served: ServedModel, *, frozen: bool = False) -> None:
        self.served, self.device = served, served.device
        self.model = served.copy(frozen=frozen)

    @classmethod
    def load(cls, directory: Path, device: str = "cpu", bf16: bool = False) -> LanguageModel:
        """Raises ServeError, one line, if there is no such model, or no chat template to ask it by."""
        served = load(directory, device, bf16)
        if not served.tokenizer.chat_template:
            raise ServeError(f"{directory}: its tokenizer has no chat template, so that nothing can be asked")
        return cls(served)

    def frozen(self) -> LanguageModel:
        copy = LanguageModel(self.served, frozen=True)
        copy.take(weights_of(self.model))
        return copy

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in weights_of(self.model).items()}

    def take(self, weights: dict[str, Tensor]) -> None:
        set_weights(self.model, weights)

    def prompts(self, questions: Sequence[str]) -> list[Tensor]:
        """Each as a user's turn of a chat."""
        tokenizer = self.served.tokenizer
        chats = [[{"role": "user", "content": question}] for question in questions]
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return [torch.tensor(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def length(self, text: str) -> int:
        return len(self.served.tokenizer(text, add_special_tokens=False)["input_ids"])

    def texts(self, responses: Responses) -> list[str]:
        rows = [tokens[mask] for tokens, mask in zip(responses.tokens, responses.mask, strict=True)]
        return self.served.tokenizer.batch_decode(rows, skip_special_tokens=True)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Tensor], samples: int, length: int, generator: torch.Generator | None
    ) -> Responses:
        """As `Policy.sample`. The n-th row takes the n-th of a position's random numbers, whoever has ended by then."""
        end, ends = self.served.stop_ids[0], set(self.served.stop_ids)
        sources = torch.arange(len(prompts)).repeat_interleave(samples)
        lengths = torch.tensor([len(prompt) for prompt in prompts])[sources]
        tokens = torch.full((len(sources), length), end)
        logprob, mask = torch.zeros(tokens.shape), torch.zeros(tokens.shape, dtype=torch.bool)

        prefilled, cache = DynamicCache(), RaggedCache(self.served.attention_dtype)
        read = self.model.base_model(
            input_ids=pad(list(prompts)).to(self.device), past_key_values=prefilled, use_cache=True
        ).last_hidden_state
        hidden = read[sources.to(self.device), (lengths - 1).to(self.device)]
        running = torch.arange(len(sources))  # which response each row of `hidden` is
        for position in range(length):
            logprobs = logits_of(self.model, hidden).log_softmax(-1)
            if generator is None:
                token = logprobs.argmax(-1)
            else:
                uniforms = torch.rand(len(sources), dtype=torch.float64, generator=generator)[running]
                token = pick(logprobs.exp(), uniforms.to(self.device))
            tokens[running, position] = token.cpu()
            logprob[running, position] = logprobs.gather(1, token[:, None])[:, 0].cpu()
            mask[running, position] = True

            going_on = [row for row, drawn in enumerate(token.tolist()) if drawn not in ends]
            if not going_on or position == length - 1:
                break
            if position == 0:
                cache.join(prefilled, sources[running[going_on]].to(self.device))
            elif len(going_on) < len(running):
                going_on = cache.keep(going_on)
            running, token = running[going_on], token[going_on]
            columns = (lengths[running] + position).to(self.device)
            hidden = self.model.base_model(
                input_ids=token[:, None],
                attention_mask=cache.write_at(columns, int(columns.max()) + 1),
                position_ids=columns[:, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]
        longest = int(mask.sum(1).max())
        return Responses(tokens[:, :longest], logprob[:, :longest], mask[:, :longest])

    def score(self, prompts: Sequence[Tensor], responses: Responses) -> Scores:
        if psutil.virtual_memory().available < LITTLE_MEMORY:
            give_back()
        samples = len(responses.tokens) // len(prompts)
        said = [tokens[mask] for tokens, mask in zip(responses.tokens, responses.mask, strict=True)]
        asked = [prompt for prompt in prompts for _ in range(samples)]
        # The last token predicts nothing that was said.
        sequences = [torch.cat([prompt, tokens[:-1]]) for prompt, tokens in zip(asked, said, strict=True)]
        rows = rows_of(sequences, [len(prompt) for prompt in asked])
        room = PASS_TOKENS.get(self.device.type, PASS_TOKENS_ELSEWHERE)
        groups = passes(rows, room)
        held = sum(len(group) * max(row.length for row in group) for group in groups)
        read = self._read if held <= room else partial(checkpoint, self._read, use_reentrant=False)
        logprob: list[Tensor] = [torch.empty(0)] * len(said)
        entropy = 0.0
        for group in groups:
            members = [member for row in group for member in row.members]
            parts, spread = read(group, sequences, [said[member] for member in members])
            for member, part in zip(members, parts.split([len(said[member]) for member in members]), strict=True):
                logprob[member] = part
            entropy += spread.item()
        padded = torch.zeros(responses.mask.shape).masked_scatter(responses.mask, torch.cat(logprob))
        return Scores(padded, entropy / int(responses.mask.sum()))

    def _read(self, rows: list[Row], sequences: list[Tensor], said: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The logprobs of what the rows' members said, one after the other, and the sum of the entropies there."""
        layout = lay_out(sequences, rows)
        inputs = (part if part is None else part.to(self.device) for part in layout.inputs)
        hidden = hidden_states(self.model, *inputs).flatten(0, 1)
        places = torch.cat([place[-len(tokens) :] for place, tokens in zip(layout.places, said, strict=True)])
        drawn = torch.cat(said).to(self.device)
        logprobs, entropies = token_logprobs_and_entropies(self.model, hidden[places.to(self.device)], drawn)
        return logprobs.cpu(), entropies.sum().cpu()


def bf16_is_faster(device: str, tokens: int = 512, width: int = 1024) -> bool:
    """Measured here and now, by a product as a model's layers do them; a CPU without instructions for it is slower."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(tokens, width, dtype=dtype, device=device)
        b = torch.ones(width, width, dtype=dtype, device=device)
        turns = []
        for _ in range(5):
            began = time.perf_counter()
            (a @ b).sum().item()
            turns.append(time.perf_counter() - began)
        seconds[dtype] = min(turns)
    return seconds[torch.bfloat16] < seconds[torch.float32]
