"""A transaction's bytes read without building a message, where nothing about them is in doubt."""
