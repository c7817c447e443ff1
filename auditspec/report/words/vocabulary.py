"""The words that plug-ins bring along: kept in the results, so that a packet can be read where they are not installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from auditspec.errors import UsageError
from auditspec.messages import Message
from auditspec.report.words.template import names, parse


def vocabulary_of(spoken: object, plugins: Iterable[tuple[str, type]]) -> dict[str, str]:
    """The templates of the plug-ins' codes that results use.

    Args:
        spoken: results, or a part of them.
        plugins: classes that may have made its messages, each with its name; their `sentences` are templates
            by code.

    Raises:
        UsageError: naming the plug-in whose `sentences` lack a code, name one that is not its own, hold what is
            no template, or one with other values than the message's.
    """
    words: dict[str, str] = {}
    for name, plugin in plugins:
        for code, template in getattr(plugin, "sentences", {}).items():
            words[code] = _checked(name, code, template)
    used: dict[str, str] = {}
    for message in messages_in(spoken):
        code = message.code
        owner = code.partition(":")[0]
        if ":" not in code:
            continue
        if code not in words:
            raise UsageError(
                f"plug-in '{owner}' makes the message '{code}', and has no words for it",
                f"add '{code}' to its class attribute `sentences`",
            )
        if odd := names(words[code]) ^ message.values.keys():
            raise UsageError(
                f"plug-in '{owner}': the words of '{code}' and its values differ by {', '.join(sorted(odd))}",
                "name the same values in both",
            )
        used[code] = words[code]
    return dict(sorted(used.items()))


def messages_in(value: Any) -> Iterator[Message]:
    """Every message in results, those within messages too."""
    if isinstance(value, Message):
        yield value
        value = value.values
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from messages_in(item)


def _checked(name: str, code: str, template: str) -> str:
    if not code.startswith(f"{name}:"):
        raise UsageError(
            f"plug-in '{name}' has words for the code '{code}', which is not its own",
            f"begin its codes with '{name}:'",
        )
    try:
        parse(template)
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"plug-in '{name}': the words of '{code}' are no template: {error}",
            "see auditspec/report/words/template.py for what may stand between braces",
        ) from None
    return template
