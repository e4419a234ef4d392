"""The settings of the till: its currency and its prices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS = Path("settings.json")


def read_settings() -> tuple[Any, dict[str, Any]]:
    """Return the currency and the prices from the settings file, unchecked."""
    settings = json.loads(SETTINGS.read_text())
    return settings["currency"], settings["prices"]


def check() -> None:
    """Raise an error that says what is wrong with the settings, if anything is."""
    currency, prices = read_settings()
    if not isinstance(currency, str) or not all(isinstance(price, int) for price in prices.values()):
        raise ValueError("a currency is a text, and a price a number")
