"""What A2A agents exchange: the parts of messages and artifacts, made of tasks' values, and a fleet's agent card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    OpenIdConnectSecurityScheme,
    Part,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from a2a.utils.constants import PROTOCOL_VERSION_1_0, TransportProtocol
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct, Value

from coditect import __version__
from coditect.codec import is_binary
from coditect.errors import InputError
from coditect.model.capability import CapabilitySpec
from coditect.settings.settings import ApiSettings
from coditect.wire.json import dumps

TEXT, JSON = "text/plain", "application/json"
MOST_EXACT = 2**53
"""The bound of whole numbers that a data part holds without loss."""


def parts_of(value: Any) -> list[Part]:
    """Return the A2A parts that carry a value: one part, of text for a text, and of JSON for any other value."""
    if isinstance(value, str):
        return [Part(text=printable(value), media_type=TEXT)]
    try:
        return [Part(data=ParseDict(value, Value()), media_type=JSON)]
    except (ParseError, ValueError):  # nested more than 100 deep, or with half of a surrogate pair
        return [Part(text=printable(dumps(value).decode()), media_type=JSON)]


def value_of(parts: Sequence[Part], *, files: bool = False) -> Any:
    """Return the value of A2A parts: one part's own value, several texts joined by newlines, or else a list of values.

    With `files`, a file or a link becomes a JSON object.

    Raises:
        InputError: when a part is a file or a link, there are no parts, or a number is not valid in JSON.
    """
    if not parts:
        raise InputError("A message without parts has no value", fix="one text part, or one data part")
    values = [_value(part, files=files) for part in parts]
    if len(values) > 1 and all(part.HasField("text") for part in parts):
        return "\n".join(values)
    return values[0] if len(values) == 1 else values


def answer_of(parts: Sequence[Part]) -> Any:
    """Return the value of an answer's parts as `value_of` does, but None for no parts, and JSON objects for files.

    Raises:
        InputError: when a number is not valid in JSON.
    """
    return value_of(parts, files=True) if parts else None


def text_of(parts: Sequence[Part]) -> str:
    """Return the texts among A2A parts, joined by newlines, without parts of other kinds; empty if none is a text."""
    return "\n".join(part.text for part in parts if part.HasField("text"))


def printable(text: str) -> str:
    """Return a text that UTF-8 can encode, as protobuf demands: halves of surrogate pairs are escaped."""
    return text.encode(errors="backslashreplace").decode()


def plain(message: Any) -> Any:
    """Return a protobuf message as a JSON value, in which whole numbers up to 2^53 are integers.

    Raises:
        InputError: when a number in it is infinite, or none.
    """
    try:
        return _whole(MessageToDict(message))
    except ValueError as error:
        raise InputError("A number in the data is not valid in JSON", reason=str(error)[:200]) from error


def _value(part: Part, *, files: bool) -> Any:
    if part.HasField("text"):
        return part.text
    if part.HasField("data"):
        return plain(part.data)
    if files:
        return plain(part)
    fix = "send its content as text or data, or its address as a text"
    raise InputError("Files and links are not taken", media_type=part.media_type[:100], fix=fix)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_EXACT:
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(field) for name, field in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


SCHEMAS = "urn:coditect:a2a:schemas"
"""The extension of a card whose `params` have the JSON Schemas of a skill's input and output, by the skill's id."""
DESCRIPTION = (
    "A fleet of software agents. Each skill is a capability: name it as `skillId` in the metadata of a message, whose "
    "text or data is the input."
)


def skilled(specs: Iterable[CapabilitySpec]) -> dict[str, CapabilitySpec]:
    """Return, by name, the capabilities to offer as A2A skills: all given ones but those that take or return bytes."""
    by_name = sorted(specs, key=lambda spec: spec.name)
    return {spec.name: spec for spec in by_name if not (is_binary(spec.input_schema) or is_binary(spec.output_schema))}


def fleet_card(skills: Mapping[str, CapabilitySpec], settings: ApiSettings, *, url: str) -> AgentCard:
    """Return the agent card of a fleet, with the given skills and the URL of its JSON-RPC endpoint."""
    card = AgentCard(
        name="Coditect",
        description=DESCRIPTION,
        version=__version__,
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding=TransportProtocol.JSONRPC, protocol_version=PROTOCOL_VERSION_1_0)
        ],
        capabilities=AgentCapabilities(
            streaming=True,
            extended_agent_card=settings.secured,
            extensions=[_schemas(skills)] if skills else [],
        ),
        default_input_modes=[JSON, TEXT],
        default_output_modes=[JSON, TEXT],
        skills=[_skill(spec) for spec in skills.values()],
    )
    for name, scheme in _schemes(settings).items():
        card.security_schemes[name].CopyFrom(scheme)
        card.security_requirements.append(SecurityRequirement(schemes={name: StringList()}))
    return card


def _skill(spec: CapabilitySpec) -> AgentSkill:
    return AgentSkill(
        id=spec.name,
        name=spec.name,
        description=spec.description or f"The capability {spec.name} of the fleet.",
        tags=sorted(spec.tags) or [spec.name.partition(".")[0]],
        input_modes=media_types(spec.input_schema),
        output_modes=media_types(spec.output_schema),
    )


def media_types(schema: Mapping[str, object]) -> tuple[str, ...]:
    """Return the media types of the values that fit a schema: text, JSON, or both if it has no type."""
    kind = schema.get("type")
    return (JSON, TEXT) if kind is None else (TEXT,) if kind == "string" else (JSON,)


def _schemas(skills: Mapping[str, CapabilitySpec]) -> AgentExtension:
    schemas: dict[str, Any] = {}
    for name, spec in skills.items():
        schemas[name] = {"input": spec.input_schema, "output": spec.output_schema}
        try:
            ParseDict(schemas[name], Struct())
        except (ParseError, ValueError):  # nested too deep for a card: the skill is described without
            del schemas[name]
    description = "The JSON Schemas of each skill's input and output."
    return AgentExtension(uri=SCHEMAS, description=description, params=ParseDict(schemas, Struct()))


def _schemes(settings: ApiSettings) -> dict[str, SecurityScheme]:
    schemes = dict[str, SecurityScheme]()
    if settings.keys is not None:
        key = HTTPAuthSecurityScheme(scheme="Bearer", description="An API key of the role operator.")
        schemes["key"] = SecurityScheme(http_auth_security_scheme=key)
    if settings.oidc_issuer is not None:
        place = f"{settings.oidc_issuer.rstrip('/')}/.well-known/openid-configuration"
        token = OpenIdConnectSecurityScheme(open_id_connect_url=place, description="A token with a role in its claims.")
        schemes["oidc"] = SecurityScheme(open_id_connect_security_scheme=token)
    return schemes
