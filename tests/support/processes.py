"""Processes that tests start and kill."""

import multiprocessing

FORK = multiprocessing.get_context("fork")
"""A forked process starts in milliseconds, and dies alone."""
