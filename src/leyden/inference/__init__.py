"""How outputs are drawn from a trained network."""
