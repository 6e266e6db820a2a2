"""Exactly once under fire: steady traffic, a fault a round, and a checker that has the last word.

`python -m tests.torture`, or `make torture`. ``sandbox`` is where it runs, ``fleet`` the roles and
who starts them again, ``traffic`` the clients, ``faults`` what is done to them, ``rounds`` the
order of it all and what is found.
"""
