"""Functions on tensors, curves and models."""
