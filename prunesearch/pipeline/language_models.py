"""The language models that searches ask, and the statistics of layers that requests show."""

from collections.abc import Sequence

import numpy as np

from prunesearch.cache.evaluation_cache import EvaluationCache
from prunesearch.config.llm import DECIDING, LLMSection
from prunesearch.importance.layer_statistics import LayerStatistics
from prunesearch.llm.opening import open_chat
from prunesearch.llm.recorded_chat import RecordedChat
from prunesearch.models.sizes import Sizes
from prunesearch.runtime.closing import Closing
from prunesearch.samplers.llm.settings import LanguageModel, LayerTable, ProposalSettings
from prunesearch.space import SearchSpace


class LanguageModels(Closing):
    """The language models of a session. Each is opened once, and all are closed together.

    Args:
        threads: number of threads of a model on this machine; None for one per core.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._chats: dict[LLMSection, RecordedChat] = {}

    def chat_of(self, section: LLMSection, cache: EvaluationCache) -> RecordedChat:
        """Return the language model of a recipe.

        Args:
            section: names the model.
            cache: evaluation cache, which keeps its replies.

        Raises:
            InputError: it cannot be used.
        """
        if section not in self._chats:
            assert section.model is not None, "a recipe without a model is refused"
            chat = open_chat(
                section.url,
                section.model,
                section.timeout,
                section.retries,
                section.context,
                self._threads,
            )
            self._chats[section] = RecordedChat(chat, cache, section.limits, section.prices)
        return self._chats[section]

    def close(self) -> None:
        """End the models that were started."""
        for chat in self._chats.values():
            chat.close()
        self._chats.clear()


def language_model_of(chat: RecordedChat, section: LLMSection, table: LayerTable) -> LanguageModel:
    """Return the language model of a sampler, with the settings of a recipe."""
    values = {name: getattr(section, name) for name in DECIDING}
    return LanguageModel(chat, ProposalSettings(**values), table, section.required)


def table_of_units(
    space: SearchSpace, sizes: Sizes, ranking: Sequence[float] | None, kind: str
) -> LayerTable:
    """Return the statistics of the units of a search over layers.

    Args:
        space: search space.
        sizes: parameters of the layers.
        ranking: estimated harm of dropping each unit alone; None if it is not known.
        kind: name of the ranking.
    """
    columns: dict[str, list[float]] = {}
    if ranking is not None:
        columns[f"harm({kind})"] = list(ranking)
    attention, blocks = np.array(sizes.attention_params), np.array(sizes.block_params)
    params = []
    for unit in range(space.n_units):
        of_unit = sorted(space.blocks_of(unit))
        if space.units == "sublayers":
            part = attention if unit % 2 == 0 else blocks - attention
            params.append(float(part[of_unit[0]]))
        else:
            params.append(float(blocks[of_unit].sum()))
    # Equal numbers say nothing.
    if len(set(params)) > 1:
        columns["parameters"] = params
    return LayerTable(columns)


def table_of_layers(layers: Sequence[LayerStatistics]) -> LayerTable:
    """Return the statistics of the layers of a search over widths."""
    columns: dict[str, list[float]] = {"influence": [], "outliers": [], "mlp": [], "attention": []}
    for layer in layers:
        columns["influence"].append(layer.influence)
        columns["outliers"].append(layer.outlier_share)
        columns["mlp"].append(float(layer.channel_scores.sum()))
        columns["attention"].append(float(layer.group_scores.sum()))
    return LayerTable(columns)
