"""How a model is learnt, kept and judged."""
