"""Asks some questions of an audit again, in another process that has no part in it.

A function of model and batch answers alike whoever asks, and when. The second process gets a random sample of the
questions that the first one got, recorded and counterfactual states among each other, each twice (slow ones once) and
in an order of its own, with the same generators and switches. What differs depends on something else: a counter, a clock, the
process, the order in which an audit asks.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auditspec.errors import AuditspecError
from auditspec.sealed.client import Client, CodeError, Question
from auditspec.sealed.codec import NUMBERS, Opaque

SAMPLED = 12
"""Questions of each kind about each function that are asked again."""
ROOM, MOST_ROOM = 2**27, 2**30
"""Bytes for the questions of a kind with their answers; one that takes more is kept alone, up to the second."""
SLOW = 0.1
"""Seconds; a question whose answer takes longer is asked again once, not twice."""
Kind = tuple[str, str, bool]
"""A function, how it is asked, and whether the answer has gradients."""
_FUNCTIONS = {"call", "outputs", "batched", "optimizer_step"}
_ALWAYS = {"begin", "dataset"}
_MAKING = {"load", "batched_new", "optimizer_new"}
_LEAVING = {*_FUNCTIONS, "loads"}
"""Questions whose answers may name what stays in the process."""
_OF_TIME = {"first_use", "overhead_bound"}
"""What an answer says of its own time, which is no other answer."""


@dataclass(frozen=True)
class Repeated:
    """What came of asking again, by function.

    Attributes:
        questions: how many were asked again.
        difference: the largest difference of an answer, relative to it; infinite for another form.
        error: what was raised instead of an answer.
    """

    questions: Mapping[str, int]
    difference: Mapping[str, float]
    error: Mapping[str, str]


class Witness:
    """Keeps a sample of what is asked, uniformly over the audit and by chance that the code cannot know.

    Args:
        client: of the audit's process.
    """

    def __init__(self, client: Client) -> None:
        self._chance = random.SystemRandom()
        self._needed: dict[int, Question] = {}
        """Questions whose answers left something in the process, by number."""
        self._changed: dict[int, list[int]] = {}
        """Models whose form each question changed in its place, by the question's number."""
        self._sampled: dict[Kind, list[tuple[Question, Any]]] = {}
        self._asked: Counter[Kind] = Counter()
        self._names: dict[int, str] = {}
        client.noted = self._note

    def _note(self, question: Question, answer: Any) -> None:
        kind, asked = question.kind, question.asked
        subject = asked.get("function", asked.get("number", 0))
        if kind in _ALWAYS or kind in _MAKING or (kind in _LEAVING and _leaves(answer)):
            self._needed[question.number] = question.copy()
            self._changed[question.number] = list(_changed(question, answer))
            if kind in _MAKING:
                number = answer if isinstance(answer, int) else answer["number"]
                self._names[number] = asked.get("entry") or self._names[subject]
        elif kind in _FUNCTIONS and not asked.get("output"):
            if kind == "outputs":  # at one of the states
                place = self._chance.randrange(asked["states"])
                question = question.at(place)
                answer = {name: values[place : place + 1] for name, values in answer.items()}
            gradients = isinstance(answer, Mapping) and "gradients" in answer
            self._sample((self._names[subject], kind, gradients), question, answer)

    def _sample(self, subject: Kind, question: Question, answer: Any) -> None:
        """Keep it with the probability that every question of its kind has (Vitter's algorithm R)."""
        sample = self._sampled.setdefault(subject, [])
        self._asked[subject] += 1
        size = max(_size(question), 1)
        if size > MOST_ROOM:
            return
        most = min(SAMPLED, max(ROOM // size, 1))
        place = len(sample)
        if place >= most:
            place = self._chance.randrange(self._asked[subject])
        if place < most:
            sample[place : place + 1] = [(question.copy(), copy.deepcopy(answer))]

    def ask_again(self, client: Client) -> Repeated:
        """Ask the sample again.

        Args:
            client: of another process that was asked nothing yet.
        """
        questions, difference, error = Counter[str](), dict[str, float](), dict[str, str]()
        sampled = [(name, *pair) for (name, _, _), pairs in self._sampled.items() for pair in pairs]
        for name, _, _ in sampled:
            questions[name] += 1
            difference.setdefault(name, 0.0)
        order = sampled * 2
        self._chance.shuffle(order)
        name, slow = "", set[int]()
        try:
            for needed in [*self._needed_for([q for _, q, _ in sampled]), None]:
                now = [item for item in order if needed is None or self._precedes(item[1], needed)]
                order = [item for item in order if not any(item is other for other in now)]
                for name, question, answer in now:
                    if question.number in slow:
                        continue
                    began = time.perf_counter()
                    other = client.ask_again(question)
                    if time.perf_counter() - began > SLOW:
                        slow.add(question.number)
                    difference[name] = max(difference[name], differs(answer, other))
                    if isinstance(other, Mapping) and "call" in other:
                        client.release(other["call"])
                if needed is not None:
                    client.ask_again(needed)
        except (AuditspecError, CodeError) as raised:
            error[name], difference[name] = str(raised), math.inf
        return Repeated(questions, difference, error)

    def _needed_for(self, questions: list[Question]) -> list[Question]:
        """The questions whose answers others build on, in their order."""
        needed = {n for n, q in self._needed.items() if q.kind in _ALWAYS}
        waiting = list(questions)
        while waiting:
            named = {*_numbers(waiting.pop().written)}
            made = {n // NUMBERS for n in named} & self._needed.keys()
            made |= {n for n, models in self._changed.items() if named & {*models}}
            waiting += [self._needed[n] for n in made - needed]
            needed |= made
        return [self._needed[n] for n in sorted(needed)]

    def _precedes(self, question: Question, change: Question) -> bool:
        """Whether a question is about a model as it was before another one changed it."""
        models = {*self._changed[change.number]}
        return question.number < change.number and bool(models & {*_numbers(question.written)})


def _changed(question: Question, answer: Any) -> Iterator[int]:
    """Numbers of the models that a function changed the form of."""
    if question.kind == "call":
        for model, news in zip(question.asked["models"], answer["models"], strict=True):
            if "description" in news:
                yield model["number"]


def differs(left: Any, right: Any) -> float:
    """The largest difference of two answers, relative to the tensor or number that it is in; infinite for another form."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape != right.shape or left.dtype != right.dtype:
            return math.inf
        if torch.equal(left, right):
            return 0.0
        if not (left.is_floating_point() or left.is_complex()):
            return math.inf
        same = (left == right) | (left.isnan() & right.isnan())
        scale = left[left.isfinite()].abs().max() if left.isfinite().any() else 1.0
        apart = float(((left - right).abs() / scale)[~same].double().max()) if not same.all() else 0
        return math.inf if math.isnan(apart) else float(apart)
    if type(left) is not type(right):
        return math.inf
    if isinstance(left, Mapping):
        if list(left) != list(right):
            return math.inf
        return max((differs(left[k], right[k]) for k in left if k not in _OF_TIME), default=0.0)
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return math.inf
        return max((differs(a, b) for a, b in zip(left, right, strict=True)), default=0.0)
    if isinstance(left, float):
        return differs(torch.tensor(left).double(), torch.tensor(right).double())
    if hasattr(left, "dtype"):
        return differs(torch.as_tensor(left), torch.as_tensor(right))
    return 0.0 if left == right else math.inf


def _leaves(answer: Any) -> bool:
    """Whether an answer names something that stays in the process."""
    if isinstance(answer, Opaque) or (isinstance(answer, tuple) and hasattr(answer, "_fields")):
        return True
    if isinstance(answer, Mapping):
        return "description" in answer or any(map(_leaves, answer.values()))
    if isinstance(answer, list | tuple):
        return answer[:1] == ("model",) or any(map(_leaves, answer))
    return False


def _numbers(written: Any) -> Iterator[int]:
    if isinstance(written, list):
        for item in written:
            yield from _numbers(item)
    elif isinstance(written, int) and written >= NUMBERS:
        yield written


def _size(question: Question) -> int:
    """Bytes of its tensors, and about as many of its answer's."""
    blocks = (t for block in question.blocks for t in block)
    return 2 * sum(t.numel() * t.itemsize for t in (*question.tensors, *blocks))
