"""The read side: what people look at, in a model of its own that follows the log (CQRS)."""
