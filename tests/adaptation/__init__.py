"""One stream, one new attack, many systems side by side: how fast each catches it."""
