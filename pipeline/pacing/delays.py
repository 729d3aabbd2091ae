"""How long after what caused it an action comes: a mixture of exponentials, learned from counts.

For each ad group and time constant the number of causes (impressions, clicks), decayed, says all
about their ages that the mixture needs, and what decays between two looks is what should have come.
Which constants matter is learned by comparing that with what came (multiplicative updates of a
Poisson likelihood), so no action has to be joined to its cause.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class DelayMixture:
    """The share of the actions that belongs to each time constant, for some kinds of action."""

    def __init__(
        self, constants_s: Floats, prior: Floats, prior_actions: float, full: float, kinds: int
    ) -> None:
        """`prior` are the shares before anything is known, weighing as much as so many actions;
        what was learned is halved when `full` actions were expected."""
        self.constants_s = constants_s
        self._full = full
        self.came = np.tile(prior * prior_actions, (kinds, 1))
        self.expected = np.full((kinds, len(constants_s)), prior_actions)
        """By kind and constant: actions that came, shared out, and actions that would have come
        were all of them of this constant."""

    def decayed(self, recent: Floats, passed_s: Floats) -> Floats:
        """Shape (n, constants): what is left of causes after this time."""
        return np.asarray(recent * np.exp(-passed_s[:, None] / self.constants_s))

    def learn(self, kind: Rows, faded: Floats, came: Floats, rate: Floats) -> None:
        """One entry an ad group: what of its causes has decayed since the last look, the actions
        that came meanwhile, and actions a cause."""
        parts = self.shares(kind) * faded
        total = np.maximum(parts.sum(axis=1, keepdims=True), 1e-300)
        np.add.at(self.came, kind, parts / total * came[:, None])
        np.add.at(self.expected, kind, rate[:, None] * faded)
        full = self.expected.max(axis=1) > self._full
        self.came[full] *= 0.5
        self.expected[full] *= 0.5

    def shares(self, kind: Rows) -> Floats:
        """Shape (n, constants), each row summing to 1."""
        curve = self.came[kind] / self.expected[kind]
        return np.asarray(curve / curve.sum(axis=1, keepdims=True))

    def pending(self, kind: Rows, recent: Floats) -> Floats:
        """How many of the causes have their actions still to come, where each has one."""
        return np.asarray((self.shares(kind) * recent).sum(axis=1))
