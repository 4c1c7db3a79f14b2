"""Recovery of quality after layers were dropped. Only this package imports peft."""

from prunesearch.heal.adapter import weights_restored
from prunesearch.heal.healing import heal
from prunesearch.heal.recipe import HealRecipe
from prunesearch.heal.training import HealProgress
from prunesearch.heal.work import Healed

__all__ = ["HealProgress", "HealRecipe", "Healed", "heal", "weights_restored"]
