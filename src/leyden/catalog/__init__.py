"""Paper, parts, experiment and evidence, as data with a reader."""
