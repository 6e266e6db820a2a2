"""ISO 4217 currencies and the fixed rates at which amounts become comparable.

Owns the code table and the only formula from minor units to cents of the reference currency
(USD). Must not know a record or a message. The rates are part of the feature schema: approximate
mid-market rates of 2025-01-02, never updated, since a changed rate changes every feature. They
make amounts comparable and are not for accounting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REFERENCE_CODE = "USD"
RATES_DATE = "2025-01-02"
AMOUNT_MINOR_MAX = 10**15
PARTS = 1_000_000_000  # rates are thousand-millionths, so that a rial keeps four digits
_REFERENCE_MINOR = 100  # cents in a dollar

# code, ISO numeric, exponent, US dollars per unit. Active codes of ISO 4217 (2025) that stand
# for money; funds, metals and test codes (BOV, XAU, XXX …) pay for nothing and are left out.
_ACTIVE = """
AED 784 2 0.27229  AFN 971 2 0.0142   ALL 008 2 0.0105   AMD 051 2 0.00252
AOA 973 2 0.00109  ARS 032 2 0.00097  AUD 036 2 0.6205   AWG 533 2 0.5556   AZN 944 2 0.5882
BAM 977 2 0.5250   BBD 052 2 0.5000   BDT 050 2 0.00837  BGN 975 2 0.5250   BHD 048 3 2.6525
BIF 108 0 0.000340 BMD 060 2 1.0000   BND 096 2 0.7310   BOB 068 2 0.1447   BRL 986 2 0.1623
BSD 044 2 1.0000   BTN 064 2 0.01166  BWP 072 2 0.0717   BYN 933 2 0.3056   BZD 084 2 0.4980
CAD 124 2 0.6945   CDF 976 2 0.000350 CHF 756 2 1.0965   CLP 152 0 0.00100  CNY 156 2 0.1370
COP 170 2 0.000227 CRC 188 2 0.00197  CUP 192 2 0.0417   CVE 132 2 0.00931  CZK 203 2 0.0408
DJF 262 0 0.00562  DKK 208 2 0.1376   DOP 214 2 0.0164   DZD 012 2 0.00737  EGP 818 2 0.0197
ERN 232 2 0.06667  ETB 230 2 0.00787  EUR 978 2 1.0265   FJD 242 2 0.4300   FKP 238 2 1.2380
GBP 826 2 1.2380   GEL 981 2 0.3560   GHS 936 2 0.0680   GIP 292 2 1.2380   GMD 270 2 0.0139
GNF 324 0 0.000116 GTQ 320 2 0.1297   GYD 328 2 0.00478  HKD 344 2 0.1286   HNL 340 2 0.0394
HTG 332 2 0.00765  HUF 348 2 0.00248  IDR 360 2 0.0000616 ILS 376 2 0.2740  INR 356 2 0.01166
IQD 368 3 0.000763 IRR 364 2 0.0000238 ISK 352 0 0.00715 JMD 388 2 0.00641  JOD 400 3 1.4100
JPY 392 0 0.00635  KES 404 2 0.00774  KGS 417 2 0.0115   KHR 116 2 0.000248 KMF 174 0 0.00209
KPW 408 2 0.00111  KRW 410 0 0.000682 KWD 414 3 3.2440   KYD 136 2 1.2000   KZT 398 2 0.00190
LAK 418 2 0.0000458 LBP 422 2 0.0000112 LKR 144 2 0.00341 LRD 430 2 0.00549 LSL 426 2 0.0534
LYD 434 3 0.2030   MAD 504 2 0.0989   MDL 498 2 0.0541   MGA 969 2 0.000213 MKD 807 2 0.0167
MMK 104 2 0.000476 MNT 496 2 0.000292 MOP 446 2 0.1249   MRU 929 2 0.0251   MUR 480 2 0.0212
MVR 462 2 0.0649   MWK 454 2 0.000577 MXN 484 2 0.0485   MYR 458 2 0.2230   MZN 943 2 0.0156
NAD 516 2 0.0534   NGN 566 2 0.000648 NIO 558 2 0.0272   NOK 578 2 0.0878   NPR 524 2 0.00729
NZD 554 2 0.5595   OMR 512 3 2.5970   PAB 590 2 1.0000   PEN 604 2 0.2660   PGK 598 2 0.2490
PHP 608 2 0.0173   PKR 586 2 0.00359  PLN 985 2 0.2405   PYG 600 0 0.000128 QAR 634 2 0.2747
RON 946 2 0.2064   RSD 941 2 0.00877  RUB 643 2 0.00904  RWF 646 0 0.000724 SAR 682 2 0.2662
SBD 090 2 0.1190   SCR 690 2 0.0704   SDG 938 2 0.00166  SEK 752 2 0.0896   SGD 702 2 0.7310
SHP 654 2 1.2380   SLE 925 2 0.0439   SOS 706 2 0.00175  SRD 968 2 0.0285   SSP 728 2 0.000253
STN 930 2 0.0419   SVC 222 2 0.1143   SYP 760 2 0.0000769 SZL 748 2 0.0534  THB 764 2 0.0291
TJS 972 2 0.0915   TMT 934 2 0.2857   TND 788 3 0.3120   TOP 776 2 0.4170   TRY 949 2 0.0283
TTD 780 2 0.1473   TWD 901 2 0.0304   TZS 834 2 0.000411 UAH 980 2 0.0238   UGX 800 0 0.000272
USD 840 2 1.0000   UYU 858 2 0.0228   UZS 860 2 0.0000774 VED 926 2 0.0192  VES 928 2 0.0192
VND 704 0 0.0000393 VUV 548 0 0.00823 WST 882 2 0.3560   XAF 950 0 0.00157  XCD 951 2 0.3704
XCG 532 2 0.5587   XOF 952 0 0.00157  XPF 953 0 0.00861  YER 886 2 0.00401  ZAR 710 2 0.0534
ZMW 967 2 0.0359   ZWG 924 2 0.0388
"""


class Currency(NamedTuple):
    """One currency; ``rate_parts`` is cents of USD per minor unit, in units of 1 / PARTS."""

    code: str
    number: int
    exponent: int
    rate_parts: int


def _rate_parts(dollars: str, exponent: int) -> int:
    """Return the rate of one minor unit, from the decimal text and without a float."""
    whole, _, fraction = dollars.partition(".")
    scaled = int(whole + fraction) * PARTS * _REFERENCE_MINOR
    return int(scaled // 10 ** (len(fraction) + exponent))


def _read(table: str) -> dict[str, Currency]:
    words = table.split()
    rows = zip(words[0::4], words[1::4], words[2::4], words[3::4], strict=True)
    return {
        code: Currency(code, int(number), int(exponent), _rate_parts(rate, int(exponent)))
        for code, number, exponent, rate in rows
    }


CURRENCIES = _read(_ACTIVE)


def to_reference(amount_minor: int, code: str) -> int:
    """Return cents of the reference currency, rounded half up, exactly.

    Raises KeyError for a code that is not in CURRENCIES.
    """
    return (amount_minor * CURRENCIES[code].rate_parts + PARTS // 2) // PARTS


def to_reference_many(
    amounts_minor: NDArray[np.int64], rates_parts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return int64[n]: the integers that to_reference gives, for amounts up to AMOUNT_MINOR_MAX.

    ``rates_parts`` int64[n] comes from ``rates_of``. Raises ValueError for an amount outside
    0 to AMOUNT_MINOR_MAX, where the products below could leave 64 bits.
    """
    outside = (amounts_minor < 0) | (amounts_minor > AMOUNT_MINOR_MAX)
    if outside.any():
        raise ValueError(f"amounts must lie between 0 and {AMOUNT_MINOR_MAX} minor units")
    # amount·rate / PARTS with the amount split at PARTS: the high part divides without a rest.
    high, low = np.divmod(amounts_minor, PARTS)
    result: NDArray[np.int64] = high * rates_parts + (low * rates_parts + PARTS // 2) // PARTS
    return result


def rates_of(codes: NDArray[np.str_]) -> NDArray[np.int64]:
    """Return int64[n]: ``rate_parts`` of each code. Raises KeyError for an unknown code."""
    distinct, index = np.unique(codes, return_inverse=True)
    rates = np.array([CURRENCIES[str(code)].rate_parts for code in distinct], np.int64)
    return rates[index]
