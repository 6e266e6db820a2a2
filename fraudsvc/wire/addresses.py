"""The network of an IP address in text form, from its bytes.

Owns the forms of addresses that are beyond doubt: what inet_pton takes, without IPv6 addresses
that end in an IPv4 one. Must not know a field. The network's own definition is
``records.network_of``, which this equals.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NETWORK_TEXT_MAX = 12  # six octets in hexadecimal
_IPV4_OCTETS, _IPV6_OCTETS = 3, 6
_DOT, _COLON, _ZERO, _NINE, _A = b".:09a"


@njit(cache=True)
def _read_ipv4(data, start, stop, octets):  # type: ignore[no-untyped-def]
    """Fill the octets; return whether there are four in decimal, without leading zeros."""
    count, octet, digits = 0, np.int64(0), 0
    for i in range(start, stop):
        byte = np.int64(data[i])
        if byte == _DOT and digits > 0 and count < 3:
            octets[count] = octet
            count, octet, digits = count + 1, np.int64(0), 0
        elif _ZERO <= byte <= _NINE and (digits == 0 or octet > 0):
            octet, digits = octet * 10 + byte - _ZERO, digits + 1
        else:
            return False
        if octet > 255:
            return False
    return count == 3 and digits > 0


@njit(cache=True)
def _hexadecimal(byte):  # type: ignore[no-untyped-def]
    """Return the value of a digit in either case, -1 for another character."""
    byte = np.int64(byte)
    if _ZERO <= byte <= _NINE:
        return byte - _ZERO
    letter = (byte | 0x20) - _A
    return letter + 10 if 0 <= letter < 6 else np.int64(-1)


@njit(cache=True)
def _read_groups(data, start, stop, groups):  # type: ignore[no-untyped-def]
    """Fill int64[9]; return how many groups, and before "::" (-1 none), there are; 0 for doubt."""
    count, gap, digits = 0, -1, 0
    for i in range(start, stop):
        if data[i] != _COLON:
            digit, digits = _hexadecimal(data[i]), digits + 1
            if digit < 0 or digits > 4:
                return 0, -1
            groups[count] = (groups[count] << 4 | digit) if digits > 1 else digit
        elif digits > 0:  # ends a group
            if count == 8 or i + 1 == stop:
                return 0, -1
            count, digits = count + 1, 0
        elif i > start and data[i - 1] == _COLON and gap < 0:  # second of the pair
            gap = count
        elif i > start or stop - start < 2 or data[i + 1] != _COLON:
            return 0, -1
    return count + (digits > 0), gap


@njit(cache=True)
def _read_ipv6(data, start, stop, octets):  # type: ignore[no-untyped-def]
    """Fill the first six octets; return whether the text is eight groups, some maybe as "::"."""
    groups = np.zeros(9, np.int64)
    count, gap = _read_groups(data, start, stop, groups)
    if count > 8 or (gap >= 0) == (count == 8):
        return False
    for i in range(3):
        at = i if gap < 0 or i < gap else i - (8 - count)
        group = groups[at] if i < gap or at >= gap else np.int64(0)
        octets[2 * i], octets[2 * i + 1] = group >> 8, group & 255
    return True


@njit(cache=True)
def write_network(data, start, stop, text):  # type: ignore[no-untyped-def]
    """Write the hexadecimal /24 or /48 to uint8[12]; return its length, 0 for doubt."""
    octets = np.empty(_IPV6_OCTETS, np.uint8)
    if _read_ipv4(data, start, stop, octets):
        count = _IPV4_OCTETS
    elif _read_ipv6(data, start, stop, octets):
        count = _IPV6_OCTETS
    else:
        return 0
    for i in range(2 * count):
        digit = (octets[i // 2] >> (4 if i % 2 == 0 else 0)) & 15
        text[i] = digit + (_ZERO if digit < 10 else _A - 10)
    return 2 * count
