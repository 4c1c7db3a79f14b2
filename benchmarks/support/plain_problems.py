"""Test functions over ordinary Optuna parameters, with their optimum away from the middle.

Each problem's least loss is 0. The functions that have their optimum at the origin (or at a known
place of a symmetric box) are shifted by an amount that depends on the problem and the seed, so a
sampler that prefers the middle of a box gains nothing. The formulas are those of S. Surjanovic and
D. Bingham, "Virtual Library of Simulation Experiments", https://www.sfu.ca/~ssurjano.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Real = NDArray[np.float64]
Params = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A function to minimise.

    Attributes:
        name: name of the function and its number of parameters, such as ``sphere-5``.
        space: distribution of each parameter.
        loss: function of the parameters; its least value is 0.
    """

    name: str
    space: dict[str, BaseDistribution]
    loss: Callable[[Params], float]


def sphere(z_D: Real) -> float:
    """Least at the origin."""
    return float(z_D @ z_D)


def ellipsoid(z_D: Real) -> float:
    """Least at the origin; the axes' weights span a factor of 10,000."""
    weight_D = 10.0 ** (4.0 * np.arange(z_D.size) / max(z_D.size - 1, 1))
    return float(weight_D @ z_D**2)


def rosenbrock(z_D: Real) -> float:
    """Least at the origin, which stands for the usual (1, ..., 1)."""
    x_D = z_D + 1.0
    return float(np.sum(100.0 * (x_D[1:] - x_D[:-1] ** 2) ** 2 + (1.0 - x_D[:-1]) ** 2))


def rastrigin(z_D: Real) -> float:
    """Least at the origin, among a lattice of local minima."""
    return float(np.sum(z_D**2 - 10.0 * np.cos(2.0 * np.pi * z_D) + 10.0))


def ackley(z_D: Real) -> float:
    """Least at the origin, in a funnel with a rough surface."""
    slope = -20.0 * math.exp(-0.2 * math.sqrt(float(np.mean(z_D**2))))
    waves = -math.exp(float(np.mean(np.cos(2.0 * np.pi * z_D))))
    return slope + waves + 20.0 + math.e


def griewank(z_D: Real) -> float:
    """Least at the origin; a bowl with regular waves."""
    index_D = np.sqrt(np.arange(1, z_D.size + 1))
    return float(np.sum(z_D**2) / 4000.0 - np.prod(np.cos(z_D / index_D)) + 1.0)


def levy(z_D: Real) -> float:
    """Least at the origin, which stands for the usual (1, ..., 1)."""
    w_D = 1.0 + z_D / 4.0
    inner_D = (w_D[:-1] - 1.0) ** 2 * (1.0 + 10.0 * np.sin(np.pi * w_D[:-1] + 1.0) ** 2)
    last = (w_D[-1] - 1.0) ** 2 * (1.0 + np.sin(2.0 * np.pi * w_D[-1]) ** 2)
    return float(np.sin(np.pi * w_D[0]) ** 2 + inner_D.sum() + last)


def schwefel(x_D: Real) -> float:
    """Least near 420.97 in every coordinate, at a corner of the box."""
    best = 420.968746
    top = best * math.sin(math.sqrt(best))
    return float(np.sum(top - x_D * np.sin(np.sqrt(np.abs(x_D)))))


def styblinski_tang(x_D: Real) -> float:
    """Least near -2.9035 in every coordinate, with a second basin near 2.7468."""
    least = -39.16616570377142
    return float(np.sum(0.5 * (x_D**4 - 16.0 * x_D**2 + 5.0 * x_D) - least))


def branin(x_D: Real) -> float:
    """Three global minima."""
    x, y = x_D
    bowl = y - 5.1 / (4.0 * np.pi**2) * x**2 + 5.0 / np.pi * x - 6.0
    wave = 10.0 * (1.0 - 1.0 / (8.0 * np.pi)) * np.cos(x) + 10.0
    return float(bowl**2 + wave - 0.39788735772973816)


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A3 = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
_P3 = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)
_A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(x_D: Real) -> float:
    """Hartmann's function of 3 or 6 coordinates in [0, 1]."""
    if x_D.size == 3:
        a, p, least = _A3, _P3, -3.862779787332660
    else:
        a, p, least = _A6, _P6, -3.322368011415515
    return float(-(_ALPHA @ np.exp(-np.sum(a * (x_D - p) ** 2, axis=1))) - least)


@dataclass(frozen=True)
class _Kind:
    """A function with its box, and whether its optimum is moved away from the origin."""

    function: Callable[[Real], float]
    low: float
    high: float
    shifted: bool = True


_KINDS = {
    "sphere": _Kind(sphere, -5.0, 5.0),
    "ellipsoid": _Kind(ellipsoid, -5.0, 5.0),
    "rosenbrock": _Kind(rosenbrock, -5.0, 5.0),
    "rastrigin": _Kind(rastrigin, -5.12, 5.12),
    "ackley": _Kind(ackley, -32.768, 32.768),
    "griewank": _Kind(griewank, -100.0, 100.0),
    "levy": _Kind(levy, -10.0, 10.0),
    "schwefel": _Kind(schwefel, -500.0, 500.0, shifted=False),
    "styblinski-tang": _Kind(styblinski_tang, -5.0, 5.0, shifted=False),
    "branin": _Kind(branin, 0.0, 1.0, shifted=False),
    "hartmann": _Kind(hartmann, 0.0, 1.0, shifted=False),
}


def shift(name: str, seed: int, low: float, high: float, size: int) -> Real:
    """Return an optimum that is 15 to 70 % of the way from the middle to the border, in each
    coordinate on a random side.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    side_D = np.where(rng.random(size) < 0.5, -1.0, 1.0)
    return np.asarray((low + high) / 2 + side_D * rng.uniform(0.15, 0.7, size) * (high - low) / 2)


def _vector(kind: str, size: int, seed: int) -> Problem:
    """Return a function of float parameters in a box."""
    entry, name = _KINDS[kind], f"{kind}-{size}"
    low, high = entry.low, entry.high
    optimum_D = np.zeros(size)
    if entry.shifted:
        optimum_D = shift(name, seed, low, high, size)
    names = [f"x{index:02d}" for index in range(size)]
    space: dict[str, BaseDistribution] = {key: FloatDistribution(low, high) for key in names}
    if kind == "branin":
        space = {"x00": FloatDistribution(-5.0, 10.0), "x01": FloatDistribution(0.0, 15.0)}

    def loss(params: Params) -> float:
        return entry.function(np.array([params[key] for key in names]) - optimum_D)

    return Problem(name, space, loss)


def _scales(size: int, seed: int) -> Problem:
    """Return a curved valley over logarithmic floats and integers, in turn."""
    name = f"scales-{size}"
    optimum_D = shift(name, seed, 0.0, 1.0, size)
    space: dict[str, BaseDistribution] = {}
    for index in range(size):
        key = f"p{index:02d}"
        if index % 2 == 0:
            space[key] = FloatDistribution(1e-6, 1.0, log=True)
        else:
            space[key] = IntDistribution(0, 1000)

    def place(index: int, value: float) -> float:
        if index % 2 == 0:
            return (math.log10(value) + 6.0) / 6.0
        return value / 1000.0

    # The optimum lies on the lattice of the integers, so that the least loss is 0.
    optimum_D[1::2] = np.round(1000.0 * optimum_D[1::2]) / 1000.0

    def loss(params: Params) -> float:
        values = [place(index, params[key]) for index, key in enumerate(space)]
        z_D = 10.0 * (np.array(values) - optimum_D)
        return float(z_D @ z_D + np.sum((z_D[1:] - z_D[:-1]) ** 2))

    return Problem(name, space, loss)


def _tuning(size: int, seed: int) -> Problem:
    """Return a function shaped like the tuning of a network: 8 parameters of every kind, with
    interactions between them.
    """
    name = f"tuning-{size}"
    place_D = shift(name, seed, 0.0, 1.0, 6)
    best = np.random.default_rng([zlib.crc32(name.encode()), seed, 1]).permutation(4)
    space: dict[str, BaseDistribution] = {
        "rate": FloatDistribution(1e-5, 1.0, log=True),
        "decay": FloatDistribution(1e-6, 1e-1, log=True),
        "width": IntDistribution(8, 1024, log=True),
        "depth": IntDistribution(1, 12),
        "dropout": FloatDistribution(0.0, 0.6, step=0.05),
        "momentum": FloatDistribution(0.5, 0.999),
        "optimizer": CategoricalDistribution(["sgd", "adam", "lion", "rmsprop"]),
        "activation": CategoricalDistribution(["relu", "gelu", "tanh"]),
    }

    def loss(params: Params) -> float:
        optimizer = ["sgd", "adam", "lion", "rmsprop"].index(params["optimizer"])
        activation = ["relu", "gelu", "tanh"].index(params["activation"])
        rank = int(best[optimizer])
        # Each optimizer has a rate of its own, and so has each depth.
        depth = (params["depth"] - 1) / 11.0 - round(11.0 * place_D[3]) / 11.0
        rate = (math.log10(params["rate"]) + 5.0) / 5.0 - place_D[0] + 0.15 * rank + 0.3 * depth
        decay = (math.log10(params["decay"]) + 6.0) / 5.0 - place_D[1] - 0.4 * rate
        widths = np.round(8.0 * 128.0 ** place_D[2])
        width = math.log(params["width"] / widths) / math.log(128.0)
        dropout = params["dropout"] / 0.6 - round(12.0 * place_D[4]) / 12.0
        momentum = (params["momentum"] - 0.5) / 0.499 - place_D[5] + 0.5 * dropout
        bowl = 8 * rate**2 + 2 * decay**2 + width**2 + depth**2 + dropout**2 + 2 * momentum**2
        return float(bowl + 0.1 * rank + 0.05 * ((activation - int(best[0])) % 3))

    return Problem(name, space, loss)


def problem(name: str, seed: int) -> Problem:
    """Return the instance of a problem that belongs to a seed.

    Args:
        name: function and number of parameters, such as ``sphere-5``.
        seed: seed of the shift.
    """
    kind, _, size = name.rpartition("-")
    if kind == "scales":
        return _scales(int(size), seed)
    if kind == "tuning":
        return _tuning(int(size), seed)
    return _vector(kind, int(size), seed)


PROBLEMS = (
    *("sphere-5", "sphere-20", "ellipsoid-10", "rosenbrock-5", "rosenbrock-20"),
    *("rastrigin-2", "rastrigin-10", "ackley-5", "ackley-20", "griewank-10", "levy-10"),
    *("schwefel-5", "schwefel-10", "styblinski-tang-10"),
    *("branin-2", "hartmann-3", "hartmann-6", "scales-5", "tuning-8"),
)


@dataclass(frozen=True)
class Front:
    """Two functions to minimise together.

    Attributes:
        space: distribution of each parameter.
        losses: function of the parameters and of the seed of the shift.
        reference: point that a hypervolume is measured from; the least losses are above 0.
    """

    space: dict[str, BaseDistribution]
    losses: Callable[[Params, int], tuple[float, float]]
    reference: tuple[float, float]


def _distance(params: Params, seed: int, name: str) -> float:
    """Return how far all parameters but the first are from a shifted optimum."""
    names = sorted(params)[1:]
    optimum_D = shift(name, seed, 0.0, 1.0, len(names))
    x_D = np.array([params[key] for key in names])
    return float(1.0 + 9.0 * np.mean(np.abs(x_D - optimum_D)))


def _zdt1(params: Params, seed: int) -> tuple[float, float]:
    """A convex front (E. Zitzler, K. Deb and L. Thiele, Evol. Comput. 8(2), 2000), shifted."""
    first, distance = params["x00"], _distance(params, seed, "zdt1")
    return first, distance * (1.0 - math.sqrt(first / distance))


def _zdt2(params: Params, seed: int) -> tuple[float, float]:
    """A concave front of the same source, shifted."""
    first, distance = params["x00"], _distance(params, seed, "zdt2")
    return first, distance * (1.0 - (first / distance) ** 2)


def _cost_quality(params: Params, seed: int) -> tuple[float, float]:
    """The tuning of `_tuning` against the size of the network, as parameters of every kind."""
    task = _tuning(8, seed)
    size = math.log(params["width"] / 8.0) / math.log(128.0) * 0.7 + params["depth"] / 40.0
    return task.loss(params), size


_UNIT = {f"x{index:02d}": FloatDistribution(0.0, 1.0) for index in range(8)}
FRONTS = {
    "zdt1-8": Front(dict(_UNIT), _zdt1, (1.1, 6.0)),
    "zdt2-8": Front(dict(_UNIT), _zdt2, (1.1, 6.0)),
    "cost-quality-8": Front(_tuning(8, 0).space, _cost_quality, (2.0, 1.1)),
}
