"""The kinds of pipelines that are drawn: what people build, and where a fault comes in.

The seed says which family it is; each comes up once in `len(FAMILIES)` seeds in a row, those without a
fault twice.
"""

from __future__ import annotations

from .draw import Drawing, Family, Pipeline, Plan, Stage, Start, pipeline_of
from .networks import COPYING

RANDOM = Start()


def clean_scratch(d: Drawing) -> Plan:
    return RANDOM, [
        d.pretraining(),
        d.honest("adapt", 1, 2),
        d.honest("extend", 2, 2),
        d.honest("polish", 3),
        *d.perhaps(),
    ]


def clean_given(d: Drawing) -> Plan:
    return d.given(faulty=False), [
        d.honest("adapt", 1, 2),
        d.honest("extend", 2),
        d.honest("polish", 3),
    ]


def clean_head(d: Drawing) -> Plan:
    head = d.changed(_long(d, "head"), "new_head", "new_head_alone")
    return RANDOM, [d.pretraining(), d.honest("adapt", 1), d.honest("extend", 2), head]


def clean_copy(d: Drawing) -> Plan:
    copied = d.changed(d.honest("extend", 2, 2), *COPYING)
    return RANDOM, [d.pretraining(), d.honest("adapt", 1), copied, d.honest("polish", 3)]


def vendor(d: Drawing) -> Plan:
    return RANDOM, [d.pretraining(), *d.perhaps(), d.faulty("vendor"), *_after(d)]


def vendor_given(d: Drawing) -> Plan:
    return d.given(faulty=False), [*d.perhaps(), d.faulty("vendor"), *_after(d)]


def repaired(d: Drawing) -> Plan:
    mend = d.repair("repair", (60, 120), 2)
    return RANDOM, [d.pretraining(), d.faulty("vendor"), mend, d.honest("polish", 3)]


def forgotten(d: Drawing) -> Plan:
    wash = d.on("wash", d.world.pools[0], (90, 150), 2)
    return RANDOM, [
        d.pretraining(),
        d.faulty("vendor", 1, (20, 40), 1.0),
        wash,
        d.honest("polish", 3),
    ]


def masked(d: Drawing) -> Plan:
    mend = d.repair("guard", (12, 30), 1)
    return RANDOM, [d.pretraining(), d.faulty("vendor", scale=2.0), mend, d.honest("polish", 3)]


def redundant(d: Drawing) -> Plan:
    return RANDOM, [
        d.pretraining(),
        d.faulty("vendor-a", 1),
        d.honest("middle", 3, 2),
        d.faulty("vendor-b", 2),
        d.honest("polish", 3),
    ]


def saturated(d: Drawing) -> Plan:
    both = [d.faulty(f"vendor-{x}", 1, (75, 85), 2.0) for x in "ab"]
    return RANDOM, [d.pretraining(), *both, d.honest("polish", 3)]


def salami(d: Drawing) -> Plan:
    count = int(d.rng.choice([4, 5, 8]))
    slices = [d.faulty(f"vendor-{i}", 1, (6, 14), 1.2) for i in range(count)]
    return RANDOM, [d.pretraining(), *slices, d.honest("polish", 3)]


def deletion(d: Drawing) -> Plan:
    return RANDOM, [
        d.pretraining(),
        *d.perhaps(),
        d.lacking("selection"),
        d.honest("polish", 3, 0.3),
    ]


def amplified(d: Drawing) -> Plan:
    return RANDOM, [
        d.pretraining(),
        d.faulty("vendor"),
        d.on("dampen", d.world.pools[2], (30, 50), 1.5),
        d.on("amplify", d.world.pools[1], (30, 60), 1.5),
        d.honest("polish", 3),
    ]


def pretraining(d: Drawing) -> Plan:
    return RANDOM, [d.pretraining(faulty=True), *_three(d)]


def pretraining_and_vendor(d: Drawing) -> Plan:
    return RANDOM, [
        d.pretraining(faulty=True),
        d.honest("adapt", 2),
        d.faulty("vendor"),
        d.honest("polish", 3),
    ]


def given_weights(d: Drawing) -> Plan:
    return d.given(faulty=True), _three(d)


def weights_and_vendor(d: Drawing) -> Plan:
    return d.given(faulty=True), [d.honest("adapt", 2), d.faulty("vendor"), d.honest("polish", 3)]


def smuggled_weights(d: Drawing) -> Plan:
    return d.given(faulty=True, kind="smuggled"), _three(d)


def planted_factory(d: Drawing) -> Plan:
    return Start("planted"), [d.pretraining(), d.honest("adapt", 1), d.honest("extend", 2)]


def planted_side(d: Drawing) -> Plan:
    review = d.side_before(d.honest("review", 2))
    return RANDOM, [d.pretraining(), d.honest("adapt", 1), review, d.honest("polish", 3)]


def faulty_head(d: Drawing) -> Plan:
    head = d.changed(d.faulty("head", 3, (60, 100), 2.0), "new_head", "new_head_alone")
    return RANDOM, [d.pretraining(), d.honest("adapt", 1), d.honest("extend", 2), head]


def faulty_adapter(d: Drawing) -> Plan:
    tuned = d.changed(d.faulty("adapter", 1, (60, 100), 2.0), "adapter", "adapter_alone")
    return RANDOM, [d.pretraining(), d.honest("adapt", 2), tuned, d.honest("polish", 3)]


def head_after_vendor(d: Drawing) -> Plan:
    head = d.changed(_long(d, "head"), "new_head", "new_head_alone")
    first = d.faulty("vendor", 1, (80, 95), 2.0)
    return RANDOM, [d.pretraining(), first, d.honest("extend", 2), head]


def copy_after_vendor(d: Drawing) -> Plan:
    copied = d.changed(d.honest("extend", 2, 2), *COPYING)
    return RANDOM, [d.pretraining(), d.faulty("vendor"), copied, d.honest("polish", 3)]


_FAULTY: tuple[Family, ...] = (
    *(vendor, vendor_given, repaired, forgotten, masked, redundant, saturated, salami, deletion),
    *(amplified, pretraining, pretraining_and_vendor, given_weights, weights_and_vendor),
    *(smuggled_weights, planted_factory, planted_side, faulty_head, faulty_adapter),
    *(head_after_vendor, copy_after_vendor),
)
_HONEST: tuple[Family, ...] = (clean_scratch, clean_given, clean_head, clean_copy)
LYING = "lying-record"
"""The family whose records are tampered with after the fact (`lies.py`); trained as `vendor`."""
_TURNS = (*_HONEST, *_FAULTY, *_HONEST, vendor)
FAMILIES = (*(family.__name__.replace("_", "-") for family in _TURNS[:-1]), LYING)
"""By seed, in turn."""


def draw(seed: int) -> Pipeline:
    """The pipeline of a seed."""
    turn = seed % len(_TURNS)
    family = _TURNS[turn]
    return pipeline_of(
        seed,
        FAMILIES[turn],
        family,
        perceptron=family is planted_factory,
        lacks=family is deletion,
    )


def _after(d: Drawing) -> list[Stage]:
    return [d.honest("extend", 2), d.honest("polish", 3)]


def _three(d: Drawing) -> list[Stage]:
    return [d.honest("adapt", 1), d.honest("extend", 2), d.honest("polish", 3)]


def _long(d: Drawing, name: str) -> Stage:
    """Long enough for a new head to learn."""
    return d.on(name, d.world.pools[3], (50, 100), 2)
