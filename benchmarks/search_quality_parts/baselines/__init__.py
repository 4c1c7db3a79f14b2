"""Baselines of the benchmark that are not part of the product."""

from benchmarks.search_quality_parts.baselines.bayesian_linear import BayesianLinear
from benchmarks.search_quality_parts.baselines.model_search import model_search
from benchmarks.search_quality_parts.baselines.trust_region import TrustRegion
from benchmarks.search_quality_parts.problem import Runner

BASELINES: dict[str, Runner] = {
    "GP trust region": model_search(TrustRegion),
    "Bayesian linear": model_search(BayesianLinear),
}
"""Their runners by name."""
