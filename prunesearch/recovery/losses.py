"""Losses of a healing, in nats per token.

Shapes: B sequences of L tokens, K likeliest tokens, R rows, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.data import Dataset

from prunesearch.config.recovery import HealRecipe
from prunesearch.objectives.reference_logits import DenseRows
from prunesearch.recovery.teacher import Teacher
from prunesearch.runtime import stopping


class Examples(Dataset[dict[str, torch.Tensor]]):
    """Sequences, with their teacher logits if there is a teacher."""

    def __init__(self, ids_BL: torch.Tensor, teacher: Teacher | None) -> None:
        self._ids_BL, self._teacher = ids_BL, teacher

    def __len__(self) -> int:
        return len(self._ids_BL)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_L = self._ids_BL[index]
        if self._teacher is None:
            return {"input_ids": ids_L}
        answers = self._teacher.answers(ids_L)
        assert answers.log_p_RK is not None and answers.index_RK is not None
        return {"input_ids": ids_L, "log_p": answers.log_p_RK, "index": answers.index_RK}


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack the tensors of examples into a batch."""
    batch = {}
    for name in examples[0]:
        batch[name] = torch.stack([example[name] for example in examples])
    return batch


def loss_of(
    logits_BLV: torch.Tensor, batch: Mapping[str, torch.Tensor], recipe: HealRecipe
) -> torch.Tensor:
    """Compute the recipe's loss of a batch, in nats per token.

    * ``lm``: mean of -log q(next) over the L - 1 tokens that have a predecessor.
    * ``distill``: mean over all L positions of KL(teacher || student), over the teacher's K
      likeliest tokens and one tail bucket, as with `kl_top` in the search. It is a lower bound
      of the KL over the vocabulary. Unlike a renormalised KL it also teaches the total probability
      of the other tokens.
    * ``mix``: (1 - w) lm + w distill.

    Parts without a weight in the loss are not computed.
    """
    if recipe.loss == "lm":
        return _cross_entropy(logits_BLV, batch["input_ids"])
    # KL to the teacher. The log-probabilities of the student are computed once for both parts.
    log_q_RV = torch.log_softmax(logits_BLV.flatten(0, 1), dim=-1, dtype=torch.float32)
    log_p_RK = batch["log_p"].flatten(0, 1)
    dense = DenseRows(log_p_RK.exp(), log_p_RK, batch["index"].flatten(0, 1).long())
    kl = dense.divergence(log_q_RV).mean()
    if recipe.loss == "distill":
        return kl
    # Next-token cross-entropy.
    log_q_BLV = log_q_RV.view(logits_BLV.shape)
    next_BL = batch["input_ids"][:, 1:, None]
    lm = -log_q_BLV[:, :-1].gather(2, next_BL).mean()
    return (1 - recipe.distill_weight) * lm + recipe.distill_weight * kl


def _cross_entropy(logits_BLV: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of a batch."""
    # The last position has no next token. It is marked as ignored, because slicing the logits would
    # copy them.
    next_BL = nn.functional.pad(ids_BL[:, 1:], (0, 1), value=-100)
    return nn.functional.cross_entropy(logits_BLV.flatten(0, 1).float(), next_BL.flatten())


@torch.no_grad()
def held_out_losses(
    model: nn.Module, examples: Examples, recipe: HealRecipe, device: torch.device
) -> tuple[float, float]:
    """Compute the losses of a model on held-out text.

    Returns:
        The recipe's loss and the next-token cross-entropy, both in nats per token.
    """
    sums = [0.0, 0.0]
    for start in range(0, len(examples), recipe.batch_size):
        stopping.check()
        end = min(start + recipe.batch_size, len(examples))
        rows = [examples[i] for i in range(start, end)]
        batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
        logits_BLV = model(input_ids=batch["input_ids"], use_cache=False).logits
        lm = float(_cross_entropy(logits_BLV, batch["input_ids"]))
        own = lm if recipe.loss == "lm" else float(loss_of(logits_BLV, batch, recipe))
        # Weight by the number of sequences, because the last batch may be smaller.
        sums[0] += own * len(rows)
        sums[1] += lm * len(rows)
    return sums[0] / len(examples), sums[1] / len(examples)
