"""One answer per transaction, on time."""
