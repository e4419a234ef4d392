"""An approval policy's file, in YAML or JSON: its pydantic models, and its reader."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from coditect.errors import InputError
from coditect.workflow import fields
from coditect.workflow.approvals.policy import ROOTS, ApprovalPolicy, ApprovalRule, Learning, Risk, Ruling, Subject
from coditect.workflow.definition import OnTimeout
from coditect.workflow.documents.file import parse_document, read_file
from coditect.workflow.expressions import check_roots

MOST_RULES = 200


def _listed(value: object) -> object:
    """Wrap a single text in a list, and return anything else unchanged."""
    return [value] if isinstance(value, str) else value


def _expression(text: str) -> str:
    check_roots(text, ROOTS)
    return text


Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class _PolicyPart(BaseModel):
    """The base of all objects in a policy's file, which refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RuleFields(_PolicyPart):
    """The fields of a rule, as `ApprovalRule` describes them."""

    name: Name
    action: Ruling
    risk: Risk
    of: Subject | None = None
    capability: Annotated[list[Pattern], BeforeValidator(_listed)] = []
    tags: Annotated[list[str], BeforeValidator(_listed)] = []
    cost_above: float | None = Field(None, ge=0)
    workflow: Pattern = "*"
    node: Pattern = "*"
    when: Annotated[str, BeforeValidator(fields.for_pydantic(_expression))] | None = None
    timeout: Annotated[int, BeforeValidator(fields.for_pydantic(fields.duration_ms))] | None = None
    on_timeout: OnTimeout = OnTimeout.REJECT
    learn: bool = False


class DefaultFields(_PolicyPart):
    """The decisions about tasks and approvals that no rule matches."""

    task: Ruling = Ruling.APPROVE
    approval: Ruling = Ruling.ASK


class LearningFields(_PolicyPart):
    """The bounds of learned approval, as `Learning` describes them."""

    threshold: float = Field(0.9, ge=0.5, le=0.999)
    window: int = Field(50, ge=10, le=200)
    recovery: int = Field(10, ge=1, le=200)
    ceiling: Risk = Risk.MEDIUM

    @model_validator(mode="after")
    def _check(self) -> LearningFields:
        if self.ceiling is Risk.HIGH:
            raise ValueError("high risk is never approved by learning: the ceiling is low or medium")
        if self.recovery > self.window:
            raise ValueError("`recovery` is at most `window`")
        return self


class PolicyFields(_PolicyPart):
    """The fields of a whole policy: the rules in order, of which the first that matches decides."""

    rules: list[RuleFields] = Field(max_length=MOST_RULES)
    default: DefaultFields = DefaultFields()
    learning: LearningFields | None = None

    @model_validator(mode="after")
    def _check(self) -> PolicyFields:
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rules have one name: {', '.join(twice[:5])}")
        if misplaced := [rule.name for rule in self.rules if rule.learn and rule.of is not Subject.TASK]:
            raise ValueError(f"only a rule with `of: task` learns: {', '.join(misplaced[:5])}")
        if self.learning is None and (rules := [rule.name for rule in self.rules if rule.learn]):
            raise ValueError(f"a rule learns, and `learning` is missing: {', '.join(rules[:5])}")
        return self

    def policy(self, digest: str) -> ApprovalPolicy:
        """Convert the checked fields to a frozen policy, which records the digest of its file."""
        return ApprovalPolicy(
            tuple(_rule(rule) for rule in self.rules),
            self.default.task,
            self.default.approval,
            None if self.learning is None else Learning(**dict(self.learning)),
            digest,
        )


def _rule(rule: RuleFields) -> ApprovalRule:
    values = dict(rule)
    values["capability"], values["tags"] = tuple(rule.capability), frozenset(rule.tags)
    values["timeout_ms"] = values.pop("timeout")
    return ApprovalRule(**values)


POLICY_BYTES_LIMIT = 1_000_000
MAX_POLICY_PROBLEMS = 10


def load_policy(path: Path | str) -> ApprovalPolicy:
    """Read and check the approval policy in a file: JSON when its name ends in `.json`, else YAML.

    Raises:
        NotFound: when the file cannot be read.
        InputError: with the places of up to ten problems; not retryable.
    """
    path = Path(path)
    fix = "give the policy's file: CODITECT_APPROVAL_POLICY"
    content = read_file(path, noun="policy", most_bytes=POLICY_BYTES_LIMIT, fix=fix)
    return read_policy(content, is_json=path.suffix == ".json", name=str(path))


def read_policy(content: bytes, *, is_json: bool = False, name: str = "") -> ApprovalPolicy:
    """Read and check an approval policy in the bytes of a YAML or JSON document.

    Raises:
        InputError: with the places of up to ten problems; not retryable.
    """
    if len(content) > POLICY_BYTES_LIMIT:
        raise InputError(
            "A policy is at most so large", path=name, most_bytes=POLICY_BYTES_LIMIT, fix="write fewer rules"
        )
    document = parse_document(content, is_json=is_json)
    try:
        found = PolicyFields.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the policy'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False)[:MAX_POLICY_PROBLEMS]
        ]
        fix = "correct it; the fields are in docs/approvals.md"
        raise InputError("This is no approval policy", path=name, problems=problems, fix=fix) from error
    return found.policy(hashlib.sha256(content).hexdigest()[:12])
