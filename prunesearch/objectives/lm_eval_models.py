"""Models for lm-eval: one records a task's requests, and one answers them from stored results."""

from typing import Any

import torch
from lm_eval.api.instance import Instance

from prunesearch.compat.lm_eval import TokenHFLM, TokenRequest
from prunesearch.models.handover import unchanged_by
from prunesearch.objectives.lm_eval_tasks import quiet_lm_eval
from prunesearch.objectives.loglikelihood import LogLikelihood


class RequestRecorder(TokenHFLM):
    """lm-eval's own model, changed to record tokenised requests instead of answering them.

    Attributes:
        requests: tokenised requests for log-likelihoods.
        windows: number of tokenised requests for each request: 1, or the windows of a rolling one.
        prompts: requests for generated text.
    """

    def __init__(self, device: torch.device, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(device, **kwargs)
        self.requests: list[TokenRequest] = []
        self.windows: list[int] = []
        self.prompts: list[Instance] = []

    def score_tokens(self, requests: list[TokenRequest]) -> list[LogLikelihood]:
        """Record the requests, and answer each of them with zero."""
        self.requests.extend(requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[LogLikelihood]:
        self.windows += [1] * len(requests)
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        for request in requests:
            before = len(self.requests)
            super().loglikelihood_rolling([request], disable_tqdm=True)
            self.windows.append(len(self.requests) - before)
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        self.prompts += requests
        return [""] * len(requests)

    def generate(self, prompts: list[Instance]) -> list[str]:
        """Generate texts with the model in its present state."""
        with unchanged_by("lm-eval", self.model), torch.inference_mode(), quiet_lm_eval():
            return list(super().generate_until(prompts, disable_tqdm=True))


class ReplayModel:
    """A model that answers lm-eval's requests from stored answers, in the order of the requests."""

    rank, world_size = 0, 1

    def __init__(self, answers: list[LogLikelihood], windows: list[int], texts: list[str]) -> None:
        self._answers = iter(answers)
        self._windows = iter(windows)
        self._texts = iter(texts)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [next(self._texts) for _ in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[LogLikelihood]:
        return [self._next()[0] for _ in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        sums = []
        for _ in requests:
            sums.append(sum(value for value, _ in self._next()))
        return sums

    def _next(self) -> list[LogLikelihood]:
        """Return the answers of the next request."""
        return [next(self._answers) for _ in range(next(self._windows))]
