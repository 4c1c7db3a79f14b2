"""Recovery of quality after layers were dropped. Only this package imports peft."""

from prunesearch.config.recovery import HealRecipe
from prunesearch.recovery.healing import heal
from prunesearch.recovery.lora import weights_restored
from prunesearch.recovery.run_folder import Healed

__all__ = ["HealRecipe", "Healed", "heal", "weights_restored"]
