"""Rules that span several parts of a spec: references, unique ids, labels.

They read plain data rather than a `Spec`, and skip whatever has the wrong shape, so that one pass
reports them together with the errors of single fields, each at its own place.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple, get_args

from auditspec.spec.key_uri import PIN_ELSEWHERE, PIN_INSIDE, carries_pin
from auditspec.spec.measures import MEAN, DeclaredMetric, DeclaredStatistic, OutputKind
from auditspec.spec.suggest import did_you_mean, nearest
from auditspec.spec.tree import Location

REQUIRED_ARTIFACTS = ("code", "record")


class Broken(NamedTuple):
    """A broken rule, with the location of the value that breaks it."""

    location: Location
    code: str
    message: str
    hint: str
    at_key: bool = False
    """Shown at the key of the value."""


def broken_rules(data: Any) -> Iterator[Broken]:
    """Yield every broken rule of a spec, given as plain data (`Spec.model_dump(by_alias=True)`)."""
    artifacts = _at(data, "artifacts")
    if isinstance(artifacts, dict):
        yield from _missing_artifacts(data, artifacts)
        yield from _misused_artifacts(data, artifacts)
        yield from _missing_labels(data, artifacts)
    yield from _missing_predict(data)
    yield from _unreadable_outputs(data)
    for kind in ("stages", "behaviors"):
        yield from _repeated_ids(kind, _at(data, kind))
    yield from _unknown_suppressions(data)
    yield from _unknown_skills(data)
    yield from _misread_scores(data)
    yield from _idle_concerns(data)
    key = _at(data, "signing", "key")
    if isinstance(key, str) and carries_pin(key):
        yield Broken(("signing", "key"), "AS091", PIN_INSIDE, PIN_ELSEWHERE)


def _missing_artifacts(data: Any, artifacts: dict[str, Any]) -> Iterator[Broken]:
    for name in REQUIRED_ARTIFACTS:
        if name not in artifacts:
            alike = nearest(name, set(artifacts) - set(REQUIRED_ARTIFACTS), cutoff=0.75)
            yield Broken(
                ("artifacts", alike) if alike else ("artifacts",),
                "AS020",
                f"artifact {name!r} is missing",
                f"rename {alike}" if alike else f"add artifacts.{name} with its path",
                at_key=alike is not None,
            )
    for location, wanted in _references(data):
        if isinstance(wanted, str) and wanted not in artifacts:
            hint = did_you_mean(wanted, artifacts, "artifacts")
            yield Broken(location, "AS021", f"no artifact is named {wanted!r}", hint)


def _references(data: Any) -> Iterator[tuple[Location, Any]]:
    yield ("model", "checkpoint"), _at(data, "model", "checkpoint")
    yield ("model", "tokenizer"), _at(data, "model", "tokenizer")
    yield ("model", "conversion", "base"), _at(data, "model", "conversion", "base")
    for key in ("weights", "reference"):
        yield ("model", "initial", key), _at(data, "model", "initial", key)
    for s, stage in _numbered(_at(data, "stages")):
        for d, name in _numbered(_at(stage, "data")):
            yield ("stages", s, "data", d), name
        for key in ("reference", "commitment"):
            yield ("stages", s, key), _at(stage, key)
    for b, behavior in _numbered(_at(data, "behaviors")):
        yield from _tables(b, behavior)


def _tables(number: int, behavior: Any) -> Iterator[tuple[Location, Any]]:
    """Tables that a behaviour is read from."""
    yield ("behaviors", number, "data"), _at(behavior, "data")
    metric = DeclaredMetric.of(_at(behavior, "metric"))
    for option, name in metric.artifacts.items() if metric is not None else ():
        yield ("behaviors", number, "metric", option), name


def _misused_artifacts(data: Any, artifacts: dict[str, Any]) -> Iterator[Broken]:
    """Code, record, and deployed weights where examples are wanted; the reverse for weights."""
    no_examples = (*REQUIRED_ARTIFACTS, _weights(data, artifacts), _at(data, "model", "tokenizer"))
    examples: list[tuple[Location, Any]] = []
    for s, stage in _numbered(_at(data, "stages")):
        examples += [(("stages", s, "data", d), n) for d, n in _numbered(_at(stage, "data"))]
        examples.append((("stages", s, "reference"), _at(stage, "reference")))
    for b, behavior in _numbered(_at(data, "behaviors")):
        examples += _tables(b, behavior)
    for location, name in examples:
        if isinstance(name, str) and name in no_examples:
            message = f"artifact {name!r} holds no examples"
            yield Broken(location, "AS036", message, "name an artifact with data")
    weights = [
        ("model", "checkpoint"),
        ("model", "conversion", "base"),
        *(("model", "initial", k) for k in ("weights", "reference")),
    ]
    for keys in weights:
        name = _at(data, *keys)
        if isinstance(name, str) and (name in REQUIRED_ARTIFACTS or _is_table(artifacts, name)):
            message = f"artifact {name!r} holds no weights"
            path = _at(artifacts.get(name), "path")
            shared = [n for n, a in artifacts.items() if n != name and _at(a, "path") == path]
            if shared:
                place, hint = ("artifacts", name, "path"), f"this is the path of {shared[0]}"
                yield Broken(place, "AS036", message, hint, at_key=True)
            else:
                yield Broken(keys, "AS036", message, "name an artifact with weights")


def _weights(data: Any, artifacts: dict[str, Any]) -> str | None:
    """The artifact with the deployed weights, unless it is one with examples by its path."""
    name = _at(data, "model", "checkpoint")
    return name if isinstance(name, str) and not _is_table(artifacts, name) else None


def _is_table(artifacts: dict[str, Any], name: str) -> bool:
    path = _at(artifacts.get(name), "path")
    return isinstance(path, str) and path.endswith((".parquet", ".csv"))


def _repeated_ids(kind: str, items: Any) -> Iterator[Broken]:
    seen: dict[str, int] = {}
    for index, item in _numbered(items):
        name = _at(item, "id")
        if not isinstance(name, str):
            continue
        if name in seen:
            yield Broken(
                (kind, index, "id"),
                "AS023",
                f"id {name!r} stands already at {kind}[{seen[name]}]",
                "give each its own id",
            )
        seen.setdefault(name, index)


def _missing_labels(data: Any, artifacts: dict[str, Any]) -> Iterator[Broken]:
    for index, behavior in _numbered(_at(data, "behaviors")):
        metric, name = DeclaredMetric.of(_at(behavior, "metric")), _at(behavior, "data")
        artifact = artifacts.get(name) if isinstance(name, str) else None
        if name in (*REQUIRED_ARTIFACTS, _weights(data, artifacts)):
            continue  # told already
        if metric is None or not metric.labelled or not isinstance(artifact, dict):
            continue
        if artifact.get("label") is None:
            truth = "value" if "values" in metric.reads else "class"
            yield Broken(
                ("behaviors", index, "metric"),
                "AS024",
                f"metric {metric.name!r} needs the true {truth} of each example",
                f"name its column: artifacts.{name}.label",
            )


def _missing_predict(data: Any) -> Iterator[Broken]:
    model = _at(data, "model")
    if not isinstance(model, dict) or model.get("predict") is not None:
        return
    for _, behavior in _numbered(_at(data, "behaviors")):
        metric = DeclaredMetric.of(_at(behavior, "metric"))
        if metric is not None and metric.predicts:
            kind = model.get("outputs") or "logits"
            message = f"model.predict is missing: metric {metric.name!r} looks at the {kind} that it gives"
            hint = f"add model.predict: module:callable, (model, batch) -> {kind}"
            yield Broken(("model",), "AS049", message, hint, at_key=True)
            return


def _unreadable_outputs(data: Any) -> Iterator[Broken]:
    """Metrics that read another kind of outputs than the model is declared to have."""
    kind = _at(data, "model", "outputs") or "logits"
    if kind not in get_args(OutputKind):
        return
    for index, behavior in _numbered(_at(data, "behaviors")):
        metric = DeclaredMetric.of(_at(behavior, "metric"))
        if metric is None or not metric.predicts or kind in metric.reads:
            continue
        able = [n for n, m in DeclaredMetric.classes().items() if m.predicts and kind in m.reads]
        others = f"metrics of {kind}: {', '.join(able)}" if able else f"no metric reads {kind}"
        yield Broken(
            ("behaviors", index, "metric", "name"),
            "AS053",
            f"metric {metric.name!r} reads {' or '.join(metric.reads)}; model.outputs is {kind}",
            f"declare what model.predict gives: model.outputs; {others}",
        )


def _unknown_suppressions(data: Any) -> Iterator[Broken]:
    known = [_at(behavior, "id") for _, behavior in _numbered(_at(data, "behaviors"))]
    names = [name for name in known if isinstance(name, str)]
    for index, suppression in _numbered(_at(data, "policy", "suppress")):
        wanted = _at(suppression, "behavior")
        if isinstance(wanted, str) and wanted not in names:
            yield Broken(
                ("policy", "suppress", index, "behavior"),
                "AS025",
                f"no behaviour is named {wanted!r}",
                did_you_mean(wanted, names, "behaviours"),
            )


def _unknown_skills(data: Any) -> Iterator[Broken]:
    known = [_at(behavior, "id") for _, behavior in _numbered(_at(data, "behaviors"))]
    for index, behavior in _numbered(_at(data, "behaviors")):
        wanted, others = _at(behavior, "skill"), [n for n in known if isinstance(n, str)]
        if isinstance(wanted, str) and (wanted not in others or wanted == _at(behavior, "id")):
            own = wanted in others
            yield Broken(
                ("behaviors", index, "skill"),
                "AS028",
                "a behaviour is no measure of the skill beside it"
                if own
                else f"no behaviour is named {wanted!r}",
                "name another behaviour" if own else did_you_mean(wanted, others, "behaviours"),
            )


def _misread_scores(data: Any) -> Iterator[Broken]:
    """Statistics that mean nothing of the metric's scores."""
    for index, behavior in _numbered(_at(data, "behaviors")):
        metric = DeclaredMetric.of(_at(behavior, "metric"))
        statistic = DeclaredStatistic.of(_at(behavior, "statistic") or MEAN)
        if metric is None or statistic is None:
            continue
        if wrong := statistic.misread(metric, str(_at(behavior, "concern", "direction"))):
            place: Location = ("behaviors", index, "statistic", "name")
            hint = "choose another statistic, or another metric"
            yield Broken(place, "AS055", f"statistic {statistic.name!r}: {wrong}", hint)


def _idle_concerns(data: Any) -> Iterator[Broken]:
    """Limits and tolerances that no model, or every model, would pass."""
    for index, behavior in _numbered(_at(data, "behaviors")):
        metric, concern = DeclaredMetric.of(_at(behavior, "metric")), _at(behavior, "concern")
        statistic = DeclaredStatistic.of(_at(behavior, "statistic") or MEAN)
        if metric is None or statistic is None:
            continue
        least, most = statistic.bounds(*metric.bounds)
        if least == -inf:
            continue
        place: Location = ("behaviors", index, "concern")
        values = f"values from {least:g} to {most:g}" if most < inf else "values from 0"
        tolerance, limit = _at(concern, "tolerance"), _at(concern, "limit")
        if _is_number(tolerance) and tolerance >= most - least:
            yield Broken(
                (*place, "tolerance"),
                "AS029",
                f"no change of this metric can exceed {tolerance:g}: it has {values}",
                "name the largest change that does not matter",
            )
        if not _is_number(limit):
            continue
        end = most if _at(concern, "direction") == "increase" else least
        if not least <= limit <= most or limit == end:
            message = (
                f"the metric has {values}, so no model can pass a limit of {limit:g}"
                if limit == end
                else f"a limit of {limit:g} is none of this metric's {values}"
            )
            yield Broken((*place, "limit"), "AS029", message, "name the worst acceptable level")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(data: Any, *keys: str) -> Any:
    """The value under nested keys, or None where the data has another shape."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _numbered(items: Any) -> Iterator[tuple[int, Any]]:
    return enumerate(items if isinstance(items, list | tuple) else ())
