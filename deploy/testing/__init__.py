"""Real servers for tests, started and ended by the test that wants them."""
