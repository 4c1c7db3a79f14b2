"""Healing: training what is left of a model until it does again what the whole one did. The only importer of peft."""

from prunesearch.heal.adapter import weights_restored
from prunesearch.heal.healing import Healed, heal
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.training import HealProgress

__all__ = ["HealProgress", "HealRecipe", "Healed", "heal", "weights_restored"]
