"""Log-likelihoods of continuations: which rows of a batch reach the vocabulary head, and what is read there.

Numbers are rounded as lm-eval rounds them (log-softmax and sums in the precision of the logits), because a metric such
as acc_norm compares them with one another.

Shapes: T tokens of a batch, R of them read, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prunesearch.candidate import LayerSubset
from prunesearch.errors import ScoringError
from prunesearch.model.anatomy import blocks_of, input_device, settings_of
from prunesearch.scoring.batches import Batch, row_batches, tree_batches
from prunesearch.scoring.forward import HEAD_ROWS, Forward, Head

Answer = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding would have said the same."""
Question = tuple[Sequence[int], Sequence[int]]
"""Token ids of the context and of its continuation."""

_EXACT_TYPES = {"full_attention", "sliding_attention"}
_BRANCH = ((3, 1, 4, 1, 5, 9, 2, 6), ((5, 3, 5), (8, 9, 7, 9)))  # a beginning and two continuations


@dataclass(frozen=True)
class Reading:
    """A batch and what is read of it.

    Attributes:
        members: the questions in it.
        lengths: tokens of each one's continuation.
        rows_R: tokens that predict a scored token, as indices into all T, each once.
        pair_row, pair_target: for every scored token, sorted by row: which of the R predicts it, and its id.
        restore: order of the scored tokens, question by question.
    """

    batch: Batch
    members: Sequence[int]
    lengths: list[int]
    rows_R: torch.Tensor
    pair_row: torch.Tensor
    pair_target: torch.Tensor
    restore: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, spans: Mapping[int, Sequence[int]], questions: Sequence[Question]) -> Self:
        """Args: spans: for each question in the batch the index, among all T, of each token of its sequence."""
        predicting = [spans[i][-len(questions[i][1]) :] for i in spans]
        rows_R, pair_row = torch.unique(torch.tensor([t for rows in predicting for t in rows]), return_inverse=True)
        order = pair_row.argsort(stable=True)
        targets = torch.tensor([t for i in spans for t in questions[i][1]])
        return cls(
            batch,
            list(spans),
            [len(rows) for rows in predicting],
            rows_R,
            pair_row[order],
            targets[order],
            order.argsort(),
        )

    def on(self, model: PreTrainedModel) -> Self:
        """The reading where the model expects it."""
        device = input_device(model)
        moved = {name: getattr(self, name).to(device) for name in ("rows_R", "pair_row", "pair_target", "restore")}
        return replace(self, batch=self.batch.on(model), **moved)

    @torch.inference_mode()
    def answers(self, head: Head, state_BLE: torch.Tensor) -> Iterator[tuple[int, Answer]]:
        """Read the answers to the batch's questions from a candidate's last state."""
        finished_RE = head.finish(state_BLE.flatten(0, 1)[self.rows_R])
        step = HEAD_ROWS.get(finished_RE.device.type, HEAD_ROWS["cpu"])
        values, greedy = [], []
        for start in range(0, len(finished_RE), step):
            log_p_RV = torch.log_softmax(head.logits(finished_RE[start : start + step]), dim=-1)
            ends = torch.tensor([start, start + step], device=self.pair_row.device)
            first, last = torch.searchsorted(self.pair_row, ends).tolist()
            row, target = self.pair_row[first:last] - start, self.pair_target[first:last]
            value = log_p_RV[row, target]
            likeliest = value >= log_p_RV.amax(-1)[row]
            if bool(likeliest.any()):  # of several equal ones, argmax names one, as in lm-eval
                likeliest[likeliest.clone()] = log_p_RV[row[likeliest]].argmax(-1) == target[likeliest]
            values.append(value)
            greedy.append(likeliest)
        value_of, greedy_of = torch.cat(values)[self.restore], torch.cat(greedy)[self.restore]
        sums = torch.stack([part.sum() for part in torch.split(value_of, self.lengths)]).tolist()
        alls = torch.stack([part.all() for part in torch.split(greedy_of, self.lengths)]).tolist()
        yield from zip(self.members, zip(sums, alls, strict=True), strict=True)


def read_trees(questions: Sequence[Question], sequences: Sequence[Sequence[int]], budget: int) -> list[Reading]:
    """Read common beginnings once; `sequences` are the questions' inputs, as `inputs_of` gives them."""
    return [Reading.of(tree, tree.spans, questions) for tree in tree_batches(sequences, budget)]


def read_rows(questions: Sequence[Question], sequences: Sequence[Sequence[int]], budget: int) -> list[Reading]:
    """Read every question by itself, padded at the right."""
    readings = []
    for batch, members in row_batches(sequences, budget):
        width = batch.ids.shape[1]
        spans = {i: range(row * width, row * width + len(sequences[i])) for row, i in enumerate(members)}
        readings.append(Reading.of(batch, spans, questions))
    return readings


def inputs_of(questions: Sequence[Question], longest: int) -> list[tuple[int, ...]]:
    """What the model reads for each question: lm-eval cuts at the left, and the last token predicts nothing."""
    return [tuple([*context, *continuation][-(longest + 1) :][:-1]) for context, continuation in questions]


def reads_trees(model: PreTrainedModel, forward: Forward) -> bool:
    """Whether this model computes on a token tree what it computes on each sequence: looked up, then tried.

    Recurrent and linear-attention layers carry one state along the row, and biases by distance (ALiBi) ignore
    position ids; both would mix branches. What the config does not tell, one block of each kind shows.
    """
    config = settings_of(model.config)
    kinds: list[str] = list(getattr(config, "layer_types", None) or [])
    if set(kinds) - _EXACT_TYPES or getattr(config, "alibi", False) or _window(config) < sum(map(len, _sample())):
        return False
    n = len(blocks_of(model))
    kept = {kinds.index(kind) for kind in set(kinds)} if kinds else {0}
    candidate = LayerSubset.of(n, set(range(n)) - kept)
    tokens = [tuple(t % int(config.vocab_size) for t in sequence) for sequence in _sample()]
    (tree,) = (t.on(model) for t in tree_batches(tokens, 64))
    try:
        ((_, _, packed_1TE),) = forward.run([(tree, [candidate])])
    except (NotImplementedError, ScoringError):  # attention that our function does not know
        return False
    for batch, (i,) in row_batches(tokens, 1):
        ((_, _, plain_1LE),) = forward.run([(batch.on(model), [candidate])])
        away = (packed_1TE[0, tree.spans[i]] - plain_1LE[0]).float().norm() / plain_1LE.float().norm()
        if not float(away) < (1e-3 if plain_1LE.dtype == torch.float32 else 0.05):
            return False
    return True


def tree_depth_fits(config: PretrainedConfig, sequences: Sequence[Sequence[int]]) -> bool:
    """Whether no sequence is longer than the model's sliding window, which a tree does not have."""
    return max(map(len, sequences)) <= _window(config)


def _window(config: PretrainedConfig) -> float:
    return getattr(settings_of(config), "sliding_window", None) or float("inf")


def _sample() -> list[tuple[int, ...]]:
    beginning, branches = _BRANCH
    return [beginning + branch for branch in branches]
