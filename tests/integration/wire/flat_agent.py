"""The echo agent as a program, so that its memory is its own."""

import os

from tests.integration.wire.agent import Echo

agent = Echo(os.environ["WIRE_CAPABILITY"], slots=8).agent()
