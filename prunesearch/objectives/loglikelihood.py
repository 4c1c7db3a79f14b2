"""Log-likelihoods of continuations, read from the last hidden states of a batch.

Only the rows that predict a scored token reach the vocabulary head. Numbers are rounded as in
lm-eval (log-softmax and sums in the precision of the logits), because metrics such as acc_norm
compare them with one another.

Shapes: T tokens of a batch, R of them read, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.execution.batches import Batch, row_batches
from prunesearch.execution.head import Head
from prunesearch.execution.head_choice import choice_for
from prunesearch.execution.shared_forward import Forward
from prunesearch.execution.tree_packing import tree_batches
from prunesearch.models.model_configs import settings_of
from prunesearch.models.structure import blocks_of, input_device

LogLikelihood = tuple[float, bool]
"""Log-likelihood in nats, and True if greedy decoding would give the same continuation."""
Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of the context and of its continuation."""

_EXACT_TYPES = {"full_attention", "sliding_attention"}
_SOFTMAX_ROWS = {"cpu": 64}  # rows whose log-probabilities are computed at a time
_BRANCH = ((3, 1, 4, 1, 5, 9, 2, 6), ((5, 3, 5), (8, 9, 7, 9)))  # a context and two continuations


@dataclass(frozen=True)
class ScoredBatch:
    """A batch, and the positions of the scored tokens in it.

    Attributes:
        batch: input of the forward pass.
        members: numbers of the requests in the batch.
        rows_R: tokens that predict a scored token, as indices into all T, without repetition.
        pair_row: index into `rows_R` of the row that predicts each scored token, sorted.
        pair_target: id of each scored token, in the same order.
        row_pairs: number of scored tokens that the rows before each row predict, and at the end
            the number of all.
        owner: index into `members` of the request of each scored token, in the same order.
    """

    batch: Batch
    members: Sequence[int]
    rows_R: torch.Tensor
    pair_row: torch.Tensor
    pair_target: torch.Tensor
    row_pairs: Sequence[int]
    owner: torch.Tensor

    @classmethod
    def of(
        cls, batch: Batch, spans: Mapping[int, Sequence[int]], requests: Sequence[Request]
    ) -> Self:
        """Find the rows to read in a batch.

        Args:
            batch: input of the forward pass.
            spans: for each request in the batch, the index of each token of its sequence among all
                T.
            requests: all requests; `spans` has their numbers.
        """
        # A token is predicted by the token before it, and the model does not read the last token.
        # So the last rows of a sequence predict its continuation.
        predicting: list[int] = []
        scored: list[int] = []
        lengths: list[int] = []
        for i, span in spans.items():
            continuation = requests[i][1]
            rows = span[-len(continuation) :]
            predicting += rows
            scored += continuation
            lengths.append(len(rows))
        # Questions with a common context share rows, and each row is read once.
        rows_R, pair_row = torch.unique(torch.tensor(predicting), return_inverse=True)
        order = pair_row.argsort(stable=True)
        targets = torch.tensor(scored)
        owner = torch.repeat_interleave(torch.tensor(lengths))
        pairs = torch.bincount(pair_row, minlength=len(rows_R)).cumsum(0).tolist()
        return cls(
            batch,
            list(spans),
            rows_R,
            pair_row[order],
            targets[order],
            [0, *pairs],
            owner[order],
        )

    def on(self, model: PreTrainedModel) -> Self:
        """Return a copy on the model's input device."""
        device = input_device(model)
        return replace(
            self,
            batch=self.batch.on(model),
            rows_R=self.rows_R.to(device),
            pair_row=self.pair_row.to(device),
            pair_target=self.pair_target.to(device),
            owner=self.owner.to(device),
        )

    @torch.inference_mode()
    def answers(self, head: Head, state_BLE: torch.Tensor) -> Iterator[tuple[int, LogLikelihood]]:
        """Yield the number of each request in the batch and its answer, from a candidate's last
        state.
        """
        normed_RE = head.apply_final_norm(state_BLE.flatten(0, 1)[self.rows_R])
        step = choice_for(head, normed_RE).rows
        values, greedy = [], []
        # Compute the logits of some rows at a time, and read the tokens that these rows predict.
        for start in range(0, len(normed_RE), step):
            logits_RV = head.logits(normed_RE[start : start + step])
            # The log-probabilities of fewer rows stay in the cache of the processor.
            part = _SOFTMAX_ROWS.get(logits_RV.device.type, len(logits_RV))
            for first, part_RV in enumerate(torch.split(logits_RV, part)):
                value, likeliest = self._read(start + first * part, part_RV)
                values.append(value)
                greedy.append(likeliest)
        # Sum the log-likelihoods of each request. Its answer is greedy if all its tokens are.
        # The sums are rounded to the precision of the logits, and leave a GPU together.
        value, wrong = torch.cat(values), ~torch.cat(greedy)
        sums_N2 = torch.zeros(len(self.members), 2, dtype=torch.float64, device=value.device)
        sums_N2.index_add_(0, self.owner, torch.stack([value.double(), wrong.double()], dim=1))
        sums_N2[:, 0] = sums_N2[:, 0].to(value.dtype)
        for member, (likelihood, wrong_tokens) in zip(self.members, sums_N2.tolist(), strict=True):
            yield member, (likelihood, wrong_tokens == 0)

    def _read(self, start: int, logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-likelihoods of the tokens that some rows predict, and whether each is greedy.

        Args:
            start: first row, counted in `rows_R`.
            logits_RV: logits of the rows.
        """
        log_p_RV = torch.log_softmax(logits_RV, dim=-1)
        pairs = slice(self.row_pairs[start], self.row_pairs[start + len(logits_RV)])
        row, target = self.pair_row[pairs] - start, self.pair_target[pairs]
        value = log_p_RV[row, target]
        # Of several tokens with the same likelihood, argmax chooses one, as in lm-eval.
        if log_p_RV.device.type != "cpu":
            return value, log_p_RV.argmax(-1)[row] == target
        # On a CPU, argmax is slow. It is computed where the token has the largest likelihood.
        likeliest = value >= log_p_RV.amax(-1)[row]
        if bool(likeliest.any()):
            likeliest[likeliest.clone()] = log_p_RV[row[likeliest]].argmax(-1) == target[likeliest]
        return value, likeliest


def lay_out_trees(
    requests: Sequence[Request], sequences: Sequence[Sequence[int]], budget: int
) -> list[ScoredBatch]:
    """Lay requests out as token trees, in which each common prefix is read once.

    Args:
        requests: contexts and continuations.
        sequences: inputs of the requests, from `inputs_of`.
        budget: tokens of a batch.
    """
    return [ScoredBatch.of(tree, tree.spans, requests) for tree in tree_batches(sequences, budget)]


def lay_out_rows(
    requests: Sequence[Request], sequences: Sequence[Sequence[int]], budget: int
) -> list[ScoredBatch]:
    """Lay requests out as rows: each request is a sequence, padded at the right."""
    batches = []
    for batch, members in row_batches(sequences, budget):
        width = batch.ids.shape[1]
        spans: dict[int, Sequence[int]] = {}
        for row, i in enumerate(members):
            spans[i] = range(row * width, row * width + len(sequences[i]))
        batches.append(ScoredBatch.of(batch, spans, requests))
    return batches


def inputs_of(requests: Sequence[Request], longest: int) -> list[tuple[int, ...]]:
    """Return the tokens that the model reads for each request.

    A long request is truncated at the left, as in lm-eval. The last token is left out, because it
    predicts no scored token.
    """
    inputs = []
    for context, continuation in requests:
        tokens = [*context, *continuation][-(longest + 1) :]
        inputs.append(tuple(tokens[:-1]))
    return inputs


def supports_trees(model: PreTrainedModel, forward: Forward) -> bool:
    """Return True if the model computes the same on a token tree as on each sequence.

    The config is read first. Recurrent and linear-attention layers carry one state along the row,
    and biases by distance (ALiBi) ignore position ids. Both would mix the branches of a tree. Then
    one block of each kind is run on a small tree, to find what the config does not show.
    """
    # Refuse the kinds of layers that are known to mix branches.
    config = settings_of(model.config)
    kinds: list[str] = list(getattr(config, "layer_types", None) or [])
    if (
        set(kinds) - _EXACT_TYPES
        or getattr(config, "alibi", False)
        or _window(config) < sum(map(len, _sample()))
    ):
        return False
    # Keep the first block of each kind.
    n = len(blocks_of(model))
    kept = set(map(kinds.index, set(kinds))) or {0}
    candidate = LayerSubset.of(n, set(range(n)) - kept)
    # Run them on a tree of two branches.
    vocabulary = int(config.vocab_size)
    tokens = []
    for sequence in _sample():
        tokens.append(tuple(token % vocabulary for token in sequence))
    (tree,) = tree_batches(tokens, 64)
    tree = tree.on(model)
    try:
        ((_, _, packed_1TE),) = forward.run([(tree, [candidate])])
    except (NotImplementedError, ScoringError):  # a kind of attention that trees do not support
        return False
    # Compare each branch with the same tokens as a plain sequence.
    for batch, (i,) in row_batches(tokens, 1):
        ((_, _, plain_1LE),) = forward.run([(batch.on(model), [candidate])])
        away = (
            packed_1TE[0, tree.spans[i]] - plain_1LE[0]
        ).float().norm() / plain_1LE.float().norm()
        tolerance = 1e-3 if plain_1LE.dtype == torch.float32 else 0.05
        if not float(away) < tolerance:  # NaN is a difference, too
            return False
    return True


def tree_depth_fits(config: PretrainedConfig, sequences: Sequence[Sequence[int]]) -> bool:
    """Return True if every sequence fits in the model's sliding window.

    Attention along a tree has no window.
    """
    return max(map(len, sequences)) <= _window(config)


def _window(config: PretrainedConfig) -> float:
    """Return the length of the model's sliding window; infinity if it has none."""
    return getattr(settings_of(config), "sliding_window", None) or float("inf")


def _sample() -> list[tuple[int, ...]]:
    """Return two short sequences with a common prefix."""
    beginning, branches = _BRANCH
    return [beginning + branch for branch in branches]
