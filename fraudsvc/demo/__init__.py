"""The demo: a world, a model, every role, live traffic with fraud in it."""
