"""Parts of lm-eval that are not in its public interface. Tested with lm-eval 0.4.13."""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""A tokenised request of lm-eval: the texts, and the token ids of context and continuation."""


class TokenHFLM(HFLM):  # type: ignore[misc]
    """lm-eval's own model for transformers, whose scoring of tokens a subclass replaces.

    Args:
        device: device that token ids must be on. `HFLM` takes the device of the first weight, which
            may be offloaded. Stands for `HFLM._device`.
        **kwargs: arguments of `HFLM`.
    """

    def __init__(self, device: torch.device, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self._device = device

    def score_tokens(self, requests: list[TokenRequest]) -> list[tuple[float, bool]]:
        """Return for each request the log-likelihood, and whether greedy decoding agrees."""
        raise NotImplementedError

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], **_: object
    ) -> list[tuple[float, bool]]:
        # `HFLM.loglikelihood` and `HFLM.loglikelihood_rolling` call this method.
        return self.score_tokens(requests)
