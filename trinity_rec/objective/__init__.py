"""The gradient table: `clip`, `weight` and `regularizer` hold the rules, `Objective` is one choice among them."""

from trinity_rec.objective.objective import Objective

__all__ = ["Objective"]
