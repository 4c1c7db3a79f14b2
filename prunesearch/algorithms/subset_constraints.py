"""Constraints on subsets of units, such as dropped blocks."""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from prunesearch.algorithms.operators import Counts, Mask, Real, choose, new_mask, top
from prunesearch.algorithms.surrogate import Ranking, Surrogate


@dataclass(frozen=True)
class SubsetConstraints:
    """Constraints on the subsets: `k_min` to `k_max` free units.

    Attributes:
        free_D: units that may be chosen.
        k_min, k_max: smallest and largest number of chosen units.
        group_D: kind of each unit (attention or MLP). Mutations of `evolution` swap units of the
            same kind.
    """

    free_D: Mask
    k_min: int
    k_max: int
    group_D: Counts

    @classmethod
    def of(
        cls, free_D: Mask, k_min: int, k_max: int | None = None, group_D: Counts | None = None
    ) -> "SubsetConstraints":
        """Build constraints with the usual defaults: a fixed size, and units of one kind."""
        if k_max is None:
            k_max = k_min
        if group_D is None:
            group_D = np.zeros(free_D.size, dtype=np.intp)
        return cls(free_D, k_min, k_max, group_D)

    def of_size(self, size: int) -> "SubsetConstraints":
        """Return the constraints for one size."""
        return SubsetConstraints.of(self.free_D, size)

    @property
    def fixed(self) -> bool:
        """True if all subsets have the same size."""
        return self.k_min == self.k_max

    @property
    def count(self) -> int:
        """Number of subsets."""
        free = int(self.free_D.sum())
        return sum(math.comb(free, k) for k in range(self.k_min, self.k_max + 1))

    def holds(self, X_D: Mask) -> bool:
        """Return whether a subset satisfies the constraints."""
        return bool(self.k_min <= X_D.sum() <= self.k_max) and not bool(X_D[~self.free_D].any())

    def repaired(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Return the subsets. The moves of the algorithms satisfy the constraints already."""
        return X_MD

    def completed(self, X_D: Mask, rng: np.random.Generator) -> Mask:
        """Drop or add random units until the subset has a possible size."""
        wanted_D = X_D & self.free_D
        size = int(np.clip(wanted_D.sum(), self.k_min, self.k_max))
        # Wanted units come first, in random order, then the others.
        score_D = np.where(self.free_D, 2.0 * wanted_D + rng.random(wanted_D.size), -1.0)
        return np.asarray(top(score_D[None], np.array([size]))[0])

    def random_subsets(self, size_M: Counts, rng: np.random.Generator) -> Mask:
        """Choose free units uniformly, as many as each size requires."""
        return choose(np.broadcast_to(self.free_D, (size_M.size, self.free_D.size)), size_M, rng)

    def swap(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Exchange `count` chosen units of each row (fewer if necessary) for the same number of
        unchosen free ones.
        """
        spare_MD = self.free_D & ~X_MD
        count_M = np.minimum(count_M, np.minimum(X_MD.sum(1), spare_MD.sum(1)))
        return np.asarray((X_MD & ~choose(X_MD, count_M, rng)) | choose(spare_MD, count_M, rng))

    def mutated(self, X_MD: Mask, count_M: Counts, rng: np.random.Generator) -> Mask:
        """Make `count` swaps in each row, each within one kind of unit. The kinds are random."""
        kinds = np.unique(self.group_D[self.free_D])
        count_MK = rng.multinomial(count_M, np.full(kinds.size, 1.0 / kinds.size))
        child_MD = np.zeros(X_MD.shape, dtype=np.bool_)
        for kind, of_kind_M in zip(kinds, count_MK.T, strict=True):
            kind_D = self.group_D == kind
            free = SubsetConstraints.of(self.free_D & kind_D, 0, self.k_max)
            child_MD |= free.swap(X_MD & kind_D, of_kind_M, rng)
        return child_MD

    def neighbours(self, X_D: Mask, most: int, rng: np.random.Generator) -> Mask:
        """Return up to `most` different subsets that one swap makes of `X_D`.

        Their size may change too if it is free.
        """
        chosen, spare = np.flatnonzero(X_D), np.flatnonzero(self.free_D & ~X_D)
        pairs = chosen.size * spare.size
        if pairs == 0:
            return self.drift(X_D[None], rng)
        out, into = np.divmod(rng.choice(pairs, size=min(most, pairs), replace=False), spare.size)
        Y_MD = np.repeat(X_D[None], out.size, axis=0)
        rows = np.arange(out.size)
        Y_MD[rows, chosen[out]] = False
        Y_MD[rows, spare[into]] = True
        return self.drift(Y_MD, rng)

    def exchangeable(self, X_D: Mask) -> tuple[Counts, Counts] | None:
        """Return the chosen units, and the free ones that are not chosen."""
        return np.flatnonzero(X_D), np.flatnonzero(self.free_D & ~X_D)

    def resize(self, X_MD: Mask, size_M: Counts, rng: np.random.Generator) -> Mask:
        """Add or remove random units until each row has its size."""
        if self.fixed:
            return X_MD
        excess_M = X_MD.sum(1) - size_M
        fewer_MD = X_MD & ~choose(X_MD, np.maximum(excess_M, 0), rng)
        return np.asarray(fewer_MD | choose(self.free_D & ~X_MD, np.maximum(-excess_M, 0), rng))

    def drift(self, X_MD: Mask, rng: np.random.Generator) -> Mask:
        """Change the size of half of the rows by one, up or down. If the size is fixed, do
        nothing.
        """
        if self.fixed:
            return X_MD
        step_M = rng.integers(-1, 2, size=len(X_MD)) * (rng.random(len(X_MD)) < 0.75)
        return self.resize(X_MD, np.clip(X_MD.sum(1) + step_M, self.k_min, self.k_max), rng)

    def unseen(
        self, X_D: Mask, seen: Set[bytes], rng: np.random.Generator, tries: int = 64
    ) -> Mask:
        """Return `X_D` if it is new, else a new subset that differs by as few random swaps as
        possible.

        If random swaps find none in a small space, one of the unseen subsets is drawn. If none is
        left, `X_D` is returned.
        """
        if X_D.tobytes() not in seen:
            return X_D
        # Try random swaps, from one up to the most that are possible.
        widest = max(1, min(int(X_D.sum()), int((self.free_D & ~X_D).sum())))
        wide_M = 1 + np.arange(tries) * widest // tries
        Y_MD = self.drift(self.swap(np.repeat(X_D[None], tries, axis=0), wide_M, rng), rng)
        found_D = new_mask(Y_MD, self, seen, rng)
        return X_D if found_D is None else found_D

    def every_subset(self) -> Iterator[Mask]:
        """Yield all subsets, by size and then in lexicographic order."""
        free = np.flatnonzero(self.free_D).tolist()
        for size in range(self.k_min, self.k_max + 1):
            for chosen in itertools.combinations(free, size):
                X_D = np.zeros_like(self.free_D)
                X_D[list(chosen)] = True
                yield X_D

    def first_subsets(
        self,
        population: int,
        block: int,
        ranking: Ranking | None,
        around: Sequence[Mask],
        rng: np.random.Generator,
    ) -> Mask:
        """Return subsets to start from, shape (P, D).

        Without a ranking, every unit occurs equally often as far as possible. With one, the first
        subset is the cheapest, and every other one is drawn by Gumbel-top-k sampling (W. Kool, H.
        van Hoof and M. Welling, ICML 2019) at rising temperatures. The rest ignores the ranking,
        because a wrong one would lead all subsets to the same place.
        """
        size_P = np.linspace(self.k_max, self.k_min, population).round().astype(np.intp)
        if ranking is None:
            return self._balanced(rng.permutation(size_P), rng)
        # Cheap units have a high score; noise grows with the temperature of the row.
        log_D = np.log(ranking.harm_D)
        ease_D = -(log_D - log_D.mean()) / (float(log_D.std()) or 1.0)
        heat_P = (np.arange(population) + block * population) / population
        score_PD = ease_D + heat_P[:, None] * rng.gumbel(size=(population, ease_D.size))
        score_PD[:, ~self.free_D] = -np.inf
        X_PD = top(score_PD, size_P)
        X_PD[1::2] = self._balanced(size_P[1::2], rng)
        return X_PD

    def _balanced(self, size_P: Counts, rng: np.random.Generator) -> Mask:
        """Draw subsets in which every unit occurs equally often, by dealing from shuffled decks of
        the free units.
        """
        X_PD = np.zeros((size_P.size, self.free_D.size), dtype=np.bool_)
        deck: list[int] = []
        for X_D, size in zip(X_PD, size_P.tolist(), strict=True):
            while X_D.sum() < size:
                # Take the first card that the subset lacks. If there is none, add another deck.
                drawn = next((unit for unit in deck if not X_D[unit]), None)
                if drawn is None:
                    deck += rng.permutation(np.flatnonzero(self.free_D)).tolist()
                    continue
                deck.remove(drawn)
                X_D[drawn] = True
        return X_PD

    def by_total(self, harm_D: Real) -> Iterator[Mask]:
        """Yield all subsets of the largest size in order of their total harm, by a best-first walk
        from the cheapest units.

        E. L. Lawler, "A procedure for computing the K best solutions to discrete optimization
        problems", Manag. Sci. 18, 1972: a successor moves one chosen unit to the next place of the
        ranking.
        """
        free = np.flatnonzero(self.free_D)
        ranked = free[np.argsort(harm_D[free], kind="stable")]
        cost = harm_D[ranked]
        start = tuple(range(self.k_max))
        heap, known = [(float(cost[list(start)].sum()), start)], {start}
        while heap:
            # Yield the cheapest subset that is left.
            _, location = heapq.heappop(heap)
            X_D = np.zeros_like(self.free_D)
            X_D[ranked[list(location)]] = True
            yield X_D
            # Add its successors.
            for index, place in enumerate(location):
                if place + 1 < len(ranked) and place + 1 not in location:
                    moved = (*location[:index], place + 1, *location[index + 1 :])
                    if moved not in known:
                        known.add(moved)
                        heapq.heappush(heap, (float(cost[list(moved)].sum()), moved))

    def surrogate(
        self, X_ND: Mask, score_N: Real, ranking: Ranking | None, noise_N: Real | None = None
    ) -> Surrogate:
        """Fit a surrogate to subsets and their scores (see `GaussianProcess`)."""
        return Surrogate(X_ND, score_N, ranking, noise_N)

    def keys(self, X_D: Mask) -> Real:
        """Return random keys that decode to the subset."""
        return np.where(X_D, 0.75, 0.25)

    def from_keys(self, x_MC: Real, rng: np.random.Generator) -> Mask:
        """Decode random keys: the largest are chosen, as many as are above 1/2 if the size may
        vary.
        """
        score_MD = np.where(self.free_D, x_MC, -1.0)
        sizes = (x_MC[:, self.free_D] > 0.5).sum(axis=1)
        return top(score_MD, np.clip(sizes, self.k_min, self.k_max))

    def condensed(self, value_MD: Real) -> Real:
        """Return numbers of the units as they are."""
        return value_MD

    def expanded(self, stored: Real) -> Real:
        """Return numbers of the units as they are."""
        return stored
