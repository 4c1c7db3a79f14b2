"""Running a model for many candidates: shared prefixes, batches, the state buffer, latency, memory
plans.
"""
