"""The parts of `benchmarks.scale_out`.

A part is a module with a function `measure(record, scratch)`. It adds its figures and their targets
to the record, and may use the folder `scratch`. Add a new part to `PARTS` in `benchmarks.scale_out`.
"""
