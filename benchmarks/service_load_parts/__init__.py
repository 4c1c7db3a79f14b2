"""The parts of `benchmarks.service_load`.

A part is a module with a function `measure(record, scratch)`. It adds its figures and their targets
to the record, and may use the folder `scratch`.
"""
