"""Experiment trackers: MLflow, Weights & Biases, trackio and TensorBoard follow a command."""
