"""Addresses on the wire against inet_pton and the checker's own network."""

from __future__ import annotations

import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_contract import full
from tests.test_wire import PAIR

octets = st.integers(0, 999).map(str) | st.sampled_from(["", "00", "01", "256"])
groups = st.text("0123456789abcdefABCDEF", max_size=5) | st.sampled_from(["", "0", "1234"])
addresses = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded.upper()),
    st.lists(octets, min_size=3, max_size=5).map(".".join),
    st.lists(groups, max_size=10).map(":".join),
    st.text("0123456789abcdef.:", max_size=12),
)


@settings(max_examples=500)
@given(addresses)
def test_addresses_are_those_of_inet_pton(text: str) -> None:
    transaction = full()
    transaction.ip_address = text
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        good = not text or bool(socket.inet_pton(family, text))
    except OSError:
        good = False
    mixed = ":" in text and "." in text
    assert PAIR.agree(transaction.SerializeToString()) == (good and not mixed)
