"""One decision from the naive way to ours, a change a step, all in one run (`make ladder`)."""
