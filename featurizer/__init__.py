"""What a feature is, how it is computed, kept and moved."""
