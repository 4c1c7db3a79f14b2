"""Everything that prunesearch uses of transformers, peft and lm-eval beyond their public interface.

These libraries may change it in any release, so this folder is the one place to look at when one of
them is upgraded. No other module imports from a submodule of transformers or peft, or reads their
private attributes (`tests/test_architecture.py` enforces it). Everything was tested with
transformers 5.23.0, peft 0.21.2, lm-eval 0.4.13 and accelerate 1.15.0.

The package itself imports nothing, so importing it does not load torch.
"""
