"""Kubernetes quantities in the form in which the API server gives them back.

It stores `0.5Gi` as `512Mi` and `1000m` as `1`. What we render is compared with what it holds, so
it is rendered that way at once (apimachinery, resource.Quantity.CanonicalizeBytes).
"""

import re
from decimal import ROUND_CEILING, Decimal

_FORM = re.compile(r"([0-9.]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?\Z")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_SMALLEST = Decimal("1e-9")


def canonical(value: str | int) -> str:
    """Return `value` in canonical form; text that is no quantity is returned as it is."""
    match = _FORM.match(str(value))
    if match is None:
        return str(value)
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix in _BINARY:
        amount = number * 1024 ** _BINARY[suffix]
        if amount == amount.to_integral_value() and amount >= 1024:  # noqa: PLR2004 - one Ki
            return _largest(int(amount), 1024, {power: name for name, power in _BINARY.items()})
        return _decimal(amount)
    if suffix[:1] in {"e", "E"} and len(suffix) > 1:
        return _exponent(number * Decimal(10) ** int(suffix[1:]))
    return _decimal(number * Decimal(1000) ** _DECIMAL[suffix])


def _decimal(amount: Decimal) -> str:
    mantissa, power = _thousands(amount)
    return f"{mantissa}{next(name for name, value in _DECIMAL.items() if value == power)}"


def _exponent(amount: Decimal) -> str:
    mantissa, power = _thousands(amount)
    return f"{mantissa}e{3 * power}" if power else str(mantissa)


def _thousands(amount: Decimal) -> tuple[int, int]:
    """Return (mantissa, power of 1000) with the greatest power that leaves a whole mantissa."""
    nanos = int((amount / _SMALLEST).to_integral_value(rounding=ROUND_CEILING))
    power = -3
    while nanos and nanos % 1000 == 0 and power < max(_DECIMAL.values()):
        nanos //= 1000
        power += 1
    return (nanos, power) if nanos else (0, 0)


def _largest(amount: int, base: int, names: dict[int, str]) -> str:
    power = 0
    while amount % base == 0 and power < max(names):
        amount //= base
        power += 1
    return f"{amount}{names.get(power, '')}"
