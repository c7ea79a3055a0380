"""What the installed Trinity has registered, by kind. Nobody else reads its registries, whose insides are private."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Registered:
    """The blocks of one kind; Trinity is imported when they are first asked for.

    Attributes:
        registry: its name in `trinity.algorithm`.
    """

    registry: str

    def _trinity(self) -> Any:
        import trinity.algorithm

        return getattr(trinity.algorithm, self.registry)

    def names(self) -> list[str]:
        """Trinity's own."""
        return list(self._trinity()._default_mapping)

    def __contains__(self, name: object) -> bool:
        """Whether it is Trinity's own."""
        return name in self._trinity()._default_mapping

    def knows(self, name: str) -> bool:
        """Whether a plugin has registered it, or it is Trinity's own."""
        return name in self or name in self._trinity().modules

    def get(self, name: str) -> Any:
        """The class of that name, or at that dotted path; raises what Trinity raises where there is none."""
        return self._trinity().get(name)


ALGORITHMS = Registered("ALGORITHM_TYPE")
POLICY_LOSSES = Registered("POLICY_LOSS_FN")
ADVANTAGES = Registered("ADVANTAGE_FN")
KL_TERMS = Registered("KL_FN")
ENTROPY_TERMS = Registered("ENTROPY_LOSS_FN")
SAMPLE_STRATEGIES = Registered("SAMPLE_STRATEGY")

# The keys of an `algorithm:` section that name a block.
BLOCKS = {
    "policy_loss_fn": POLICY_LOSSES,
    "advantage_fn": ADVANTAGES,
    "kl_loss_fn": KL_TERMS,
    "kl_penalty_fn": KL_TERMS,
    "entropy_loss_fn": ENTROPY_TERMS,
    "sample_strategy": SAMPLE_STRATEGIES,
}
