"""Network addresses of the world: homes, mobile carriers and rented servers, and their text.

Owns the number plan. Every address lies in a range reserved for private use, shared carriers,
documentation or benchmarks (RFC 1918, 6598, 3849, 2544), so none belongs to anyone.
An address is a uint64: 0 absent, below 2^32 IPv4, else bit 63 and the words of an IPv6 one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from loadgen.draws import key

_HOME = 10 << 24
_CARRIER = (100 << 24) | (64 << 16)
_SERVERS = (198 << 24) | (18 << 16)
_IPV6 = np.uint64(1 << 63)
_OCTETS = pa.array([str(value) for value in range(256)])
_WORDS = pa.array([f"{value:x}" for value in range(65536)])


def home_address(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return uint64[n]: one subscriber line per key, one in eight of them IPv6."""
    network = keys % np.uint64(1 << 15)
    host = np.uint64(1) + (keys >> np.uint64(20)) % np.uint64(254)
    version4 = np.uint64(_HOME) + network * np.uint64(256) + host
    version6 = _IPV6 | (network << np.uint64(16)) | host
    return np.where((keys >> np.uint64(40)) % np.uint64(8) == 0, version6, version4)


def carrier_address(
    rng: np.random.Generator, region: NDArray[np.int64], ipv4_count: int = 32 * 254
) -> NDArray[np.uint64]:
    """Return uint64[n]: an address that a mobile carrier of each region shares among payers."""
    draw = rng.integers(0, ipv4_count, len(region))
    return (_CARRIER + region * 65536 + (draw // 254) * 256 + draw % 254 + 1).astype(np.uint64)


def server_address(network: ArrayLike, host: ArrayLike) -> NDArray[np.uint64]:
    """Return uint64[n]: a rented server or relay; ``network`` numbers are taken modulo 512."""
    net = key(network, 7) % np.uint64(512)
    return np.uint64(_SERVERS) + net * np.uint64(256) + key(host, 8) % np.uint64(254) + np.uint64(1)


def address_text(addresses: NDArray[np.uint64]) -> pa.StringArray:
    """Return string[n]: the addresses in text form, null where absent."""
    parts = [
        _OCTETS.take(pa.array(((addresses >> np.uint64(shift)) & np.uint64(255)).astype(np.uint8)))
        for shift in (24, 16, 8, 0)
    ]
    version4 = pc.binary_join_element_wise(*parts, ".")
    words = [
        _WORDS.take(pa.array(((addresses >> np.uint64(shift)) & np.uint64(0xFFFF)).astype("u2")))
        for shift in (16, 0)
    ]
    version6 = pc.binary_join_element_wise("2001:db8:", words[0], pa.scalar("::"), words[1], "")
    is_version6 = pa.array(addresses >= _IPV6)
    text = pc.if_else(is_version6, version6, version4)
    return pc.if_else(pa.array(addresses == 0), pa.scalar(None, pa.string()), text)
