"""`torchmetrics.Metric` subclasses."""
