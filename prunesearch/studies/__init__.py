"""Optuna studies: create, resume, select, look at.

`optuna_internals` holds everything that is used of Optuna beyond its public interface.
"""
