"""The stages of the pipeline, in order. Each is one file in this folder."""

from prunesearch.pipeline.stages.base import Stage
from prunesearch.pipeline.stages.compensate import COMPENSATE
from prunesearch.pipeline.stages.evaluate import EVALUATE
from prunesearch.pipeline.stages.export import EXPORT
from prunesearch.pipeline.stages.heal import HEAL
from prunesearch.pipeline.stages.report import REPORT
from prunesearch.pipeline.stages.search import SEARCH
from prunesearch.pipeline.stages.select import SELECT
from prunesearch.pipeline.stages.tune import TUNE
from prunesearch.pipeline.stages.verify import VERIFY

STAGES = (SEARCH, SELECT, COMPENSATE, TUNE, HEAL, EXPORT, VERIFY, EVALUATE, REPORT)
"""All stages, in the order in which they run."""

__all__ = ["STAGES", "Stage"]
