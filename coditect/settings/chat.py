"""The settings of the chat endpoint, read once by a program that asks a language model.

=============================  =========  ================================================================
variable                       default    meaning
=============================  =========  ================================================================
CODITECT_CHAT_URL              none       base URL of an OpenAI-compatible endpoint, such as http://host/v1
CODITECT_CHAT_KEY              none       its API key
CODITECT_CHAT_MODEL            none       the model to ask
CODITECT_CHAT_SECONDS          120        the longest time of one answer, 0.1 to 3600
CODITECT_CHAT_SILENCE_SECONDS  30         the longest pause within an answer, 0.1 to 3600
CODITECT_CHAT_BYTES            16777216   the largest answer, as sent, 1024 to 1073741824
CODITECT_CHAT_INPUT_PRICE      0          cost of a million tokens of input, for budgets of cost
CODITECT_CHAT_OUTPUT_PRICE     0          cost of a million tokens of output, for budgets of cost
=============================  =========  ================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coditect.settings.values import number, whole


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """The checked settings of the chat endpoint; a field's variable is `CODITECT_CHAT_` and the field's name."""

    url: str | None = None
    key: str | None = field(default=None, repr=False)
    model: str | None = None
    seconds: float = 120.0
    silence_seconds: float = 30.0
    bytes: int = 16 * 1024 * 1024
    input_price: float = 0.0
    output_price: float = 0.0


CHAT_DEFAULTS = ChatSettings()


def chat_settings(values: Mapping[str, str]) -> ChatSettings:
    """Read the settings of the chat endpoint from environment variables, given as a mapping.

    Raises:
        SetupError: for a value outside its range; the error names the variable.
    """
    return ChatSettings(
        url=values.get("CODITECT_CHAT_URL") or None,
        key=values.get("CODITECT_CHAT_KEY") or None,
        model=values.get("CODITECT_CHAT_MODEL") or None,
        seconds=number(values, "CODITECT_CHAT_SECONDS", CHAT_DEFAULTS.seconds, 0.1, 3_600),
        silence_seconds=number(values, "CODITECT_CHAT_SILENCE_SECONDS", CHAT_DEFAULTS.silence_seconds, 0.1, 3_600),
        bytes=whole(values, "CODITECT_CHAT_BYTES", CHAT_DEFAULTS.bytes, 1_024, 2**30),
        input_price=number(values, "CODITECT_CHAT_INPUT_PRICE", 0, 0, 1e6),
        output_price=number(values, "CODITECT_CHAT_OUTPUT_PRICE", 0, 0, 1e6),
    )
