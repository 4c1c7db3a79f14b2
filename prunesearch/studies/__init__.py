"""Optuna studies: create, resume, select, look at.

Beside `samplers` the only user of Optuna internals.
"""
