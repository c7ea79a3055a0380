"""What an experiment asks of a language model: answers, how likely they are, and weights to copy.

There are two: `TinyPolicy` (`model.py`), the lab's own, and `LanguageModel` (`language_model.py`), any causal model of
Hugging Face's. A policy may be on any device; what goes in and comes out is on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Responses:
    """Sampled responses, [problems * samples, response] each; the samples of a prompt lie side by side.

    Attributes:
        tokens: ids; whatever follows a response's end is the end token again.
        logprob: of each token, under the policy that drew it.
        mask: bool; true up to and with the end token.
    """

    tokens: Tensor
    logprob: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Scores:
    """What a policy makes of responses: the logprob of each token, differentiable, and its entropy, a token's mean."""

    logprob: Tensor
    entropy: float


class Policy(ABC):
    """A language model and how to talk to it.

    Attributes:
        ahead: the rollouts of so many steps are drawn in one call, while the weights stay.
    """

    model: nn.Module
    ahead = 1

    @abstractmethod
    def frozen(self) -> Policy:
        """A copy with weights of its own, to sample from and to score with but not to train."""

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer trains. Their gradients may be parts of one another's: set them to 0, not to None."""
        return list(self.model.parameters())

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """A copy that further training leaves as it is."""

    @abstractmethod
    def take(self, weights: dict[str, Tensor]) -> None:
        """Replace its weights by what `weights` gave."""

    @abstractmethod
    def prompts(self, questions: Sequence[str]) -> list[Tensor]:
        """Token ids of each question as the model reads it."""

    @abstractmethod
    def length(self, text: str) -> int:
        """Tokens that a text takes."""

    @abstractmethod
    def texts(self, responses: Responses) -> list[str]:
        """What they say, without the end token."""

    @abstractmethod
    def sample(
        self, prompts: Sequence[Tensor], samples: int, length: int, generator: torch.Generator | None
    ) -> Responses:
        """Draw `samples` responses to each prompt, of at most `length` tokens, at temperature 1.

        Without a generator the most likely token is taken instead of a random one.
        """

    @abstractmethod
    def score(self, prompts: Sequence[Tensor], responses: Responses) -> Scores:
        """Score responses to the prompts, where the mask is; elsewhere `logprob` means nothing."""

    def scorer(self, prompts: Sequence[Tensor]) -> Callable[[Responses], Tensor]:
        """The logprobs of `score`, without a gradient, as a function of the responses; good while the weights stay."""
        return lambda responses: self.score(prompts, responses).logprob.detach()
