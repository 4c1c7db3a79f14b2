"""Everything that prunesearch uses of Optuna beyond its public interface.

Optuna promises none of this. No other module of the package may use a private name of Optuna or
its tables (`tests/test_architecture.py` enforces it), so this folder is the one place to look at
when Optuna is upgraded. It was tested with Optuna 5.0.0 and optuna-dashboard 0.21.0.

* `access`: a study's storage, ids and system attributes, and private functions of samplers.
* `storage`: an `RDBStorage` whose private methods have public names.
* `tables`: tables for plain queries. It does not import Optuna, so commands that use it start fast.
"""
