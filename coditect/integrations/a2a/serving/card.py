"""The agent card of a fleet: its capabilities as skills, how they are reached, and which credentials they want."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    OpenIdConnectSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from a2a.utils.constants import PROTOCOL_VERSION_1_0, TransportProtocol
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from coditect import __version__
from coditect.codec import is_binary
from coditect.integrations.a2a.parts import JSON, TEXT
from coditect.model.capability import CapabilitySpec
from coditect.settings.api import ApiSettings

SCHEMAS = "urn:coditect:a2a:schemas"
"""The extension of a card whose `params` have the JSON Schemas of a skill's input and output, by the skill's id."""
DESCRIPTION = (
    "A fleet of software agents. Each skill is a capability: name it as `skillId` in the metadata of a message, whose "
    "text or data is the input."
)


def skilled(specs: Iterable[CapabilitySpec]) -> dict[str, CapabilitySpec]:
    """Return, by name, the capabilities to offer as A2A skills: all given ones but those that take or return bytes."""
    by_name = sorted(specs, key=lambda one: one.name)
    return {one.name: one for one in by_name if not (is_binary(one.input_schema) or is_binary(one.output_schema))}


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
        skills=[_skill(one) for one in skills.values()],
    )
    for name, scheme in _schemes(settings).items():
        card.security_schemes[name].CopyFrom(scheme)
        card.security_requirements.append(SecurityRequirement(schemes={name: StringList()}))
    return card


def output_modes(spec: CapabilitySpec) -> tuple[str, ...]:
    """Return the media types in which a capability's value may come: text, JSON, or both if its schema has no type."""
    return _modes(spec.output_schema)


def _skill(spec: CapabilitySpec) -> AgentSkill:
    return AgentSkill(
        id=spec.name,
        name=spec.name,
        description=spec.description or f"The capability {spec.name} of the fleet.",
        tags=sorted(spec.tags) or [spec.name.partition(".")[0]],
        input_modes=_modes(spec.input_schema),
        output_modes=output_modes(spec),
    )


def _modes(schema: Mapping[str, object]) -> tuple[str, ...]:
    kind = schema.get("type")
    return (JSON, TEXT) if kind is None else (TEXT,) if kind == "string" else (JSON,)


def _schemas(skills: Mapping[str, CapabilitySpec]) -> AgentExtension:
    told: dict[str, Any] = {}
    for name, spec in skills.items():
        told[name] = {"input": spec.input_schema, "output": spec.output_schema}
        try:
            ParseDict(told[name], Struct())
        except (ParseError, ValueError):  # nested too deep for a card: the skill is described without
            del told[name]
    description = "The JSON Schemas of each skill's input and output."
    return AgentExtension(uri=SCHEMAS, description=description, params=ParseDict(told, Struct()))


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
