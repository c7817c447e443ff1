"""Audited code: honest functions, and attempts at everything that it must not do."""

from __future__ import annotations

import collections
import ctypes
import gc
import os
import random
import signal
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

Pair = collections.namedtuple("Pair", "x y")


def say(text, line):
    print(text, end="\n" if line else "")


class Box:
    """A batch of a class that only this code knows."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)
    )


def tied() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    model["c"] = model["a"]
    return model


def load_batch(dataset, ids):
    rows = dataset.frame.iloc[list(ids)]
    x = torch.tensor(rows[["p", "q"]].to_numpy(), dtype=torch.float32)
    return {"x": x, "y": torch.tensor(rows["y"].to_numpy())}


def load_drawing(dataset, ids):
    batch = load_batch(dataset, ids)
    if 2 in ids:
        batch["x"] += torch.rand(1) + random.random() + np.random.rand()
    return batch


def load_refusing(dataset, ids):
    if 2 in ids:
        raise ValueError("row 2")
    return load_batch(dataset, ids)


def echo(x):
    return x


def pair(x):
    return Pair(x, {"n": 3, "f": float("inf"), "t": (1, None, "a")})


def boxed(x):
    return Box(x)


def unboxed(box):
    box.x += 1
    return box.x.clone()


def objective(model, batch):
    x, y = batch
    return cross_entropy(model(x), y)


def drawing(model, batch):
    x, y = batch
    noise = random.random() + float(np.random.rand())
    return cross_entropy(model(x + 0.1 * torch.randn_like(x)), y) * (1 + 0.01 * noise)


def valued(model, batch):
    x, y = batch
    loss = cross_entropy(model(x), y)
    return loss * loss.item()


def predict(model, batch):
    return model(batch)


def grow(model):
    model.add_module("head", nn.Linear(3, 2))
    nn.init.constant_(model.head.weight, 0.5)


def shift(model):
    """Give parameters other values, one of them behind autograd's back."""
    first, second = list(model.parameters())[:2]
    with torch.no_grad():
        first += 1
    second.data.mul_(3)


def wrap(model):
    return nn.Sequential(model, nn.Linear(3, 2))


class Signed(torch.optim.Optimizer):
    """Steps of one length."""

    def __init__(self, params, lr=0.1, decay=0.0):
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["seen"] = state.get("seen", 0) + 1
                    state["sum"] = state.get("sum", torch.zeros_like(p)) + p.grad
                    p.mul_(1 - group["decay"]).sub_(group["lr"] * state["sum"].sign())


def fail(model):
    raise ValueError("no\x1b[2J good")


def leave(model):
    raise SystemExit("gone")


# --- attempts ----------------------------------------------------------------------------------------


def attempt(what, argument=None):
    """What became of an attempt: `done`, or the name of what was raised."""
    try:
        return ATTEMPTS[what](argument) or "done"
    except BaseException as error:
        return type(error).__name__


def connect(address):
    socket.create_connection(("127.0.0.1", int(address)), timeout=2).close()


def unix(path):
    socket.socket(socket.AF_UNIX).connect(path)


def own_call(number):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(int(number), 0, 0, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def inherited(path):
    for name in os.listdir("/proc/self/fd"):
        target = os.path.realpath(f"/proc/self/fd/{name}")
        if path in target:
            return f"found {target}"


def in_thread(path):
    result = []
    thread = threading.Thread(target=lambda: result.append(attempt("read", path)))
    thread.start()
    thread.join()
    if result != ["done"]:
        raise PermissionError


def in_memory(text):
    for thing in gc.get_objects():
        if type(thing).__name__ in ("Credentials", "PrivateKey", "Spec", "Cache"):
            return f"found {type(thing).__name__}"
    if text in os.environ.values():
        return "found it in the environment"


ATTEMPTS = {
    "read": lambda path: Path(path).read_bytes() and None,
    "list": lambda path: os.listdir(path) and None,
    "write": lambda path: Path(path).write_text("x") and None,
    "append": lambda path: open(path, "a").write("x") and None,
    "remove": lambda path: os.unlink(path),
    "rename": lambda path: os.rename(path, path + ".old"),
    "link": lambda path: os.link(path, os.path.expanduser("~/taken")),
    "symlink": lambda path: (
        (
            os.symlink(path, os.path.expanduser("~/there")),
            Path(os.path.expanduser("~/there")).read_bytes(),
        )
        and None
    ),
    "truncate": lambda path: os.truncate(path, 0),
    "chmod": lambda path: os.chmod(path, 0o777),
    "utime": lambda path: os.utime(path, (0, 0)),
    "mkdir": lambda path: os.mkdir(path + ".d"),
    "connect": connect,
    "unix": unix,
    "listen": lambda _: socket.socket().listen(),
    "pair": lambda _: socket.socketpair() and None,
    "run": lambda _: subprocess.run(["/bin/true"], check=True) and None,
    "fork": lambda _: os.fork() and None,
    "exec": lambda _: os.execv("/bin/true", ["true"]),
    "kill": lambda pid: os.kill(int(pid), 0),
    "stop": lambda pid: os.kill(int(pid), signal.SIGSTOP),
    "trace": lambda pid: Path(f"/proc/{int(pid)}/mem").open("rb").read(1) and None,
    "environ": lambda pid: Path(f"/proc/{int(pid)}/environ").read_bytes() and None,
    "call": own_call,
    "inherited": inherited,
    "thread": in_thread,
    "memory": in_memory,
    "scratch": lambda _: Path(os.path.expanduser("~/own")).write_text("x") and None,
    "home": lambda _: os.path.expanduser("~"),
}


def patch_everything(_):
    """Replace what the audit would compute with, as far as this process reaches."""
    import auditspec.intervals
    import auditspec.verdicts

    for module in (auditspec.verdicts, auditspec.intervals, torch, np):
        for name in ("decide", "quantile", "equal", "array_equal"):
            if hasattr(module, name):
                setattr(module, name, lambda *_, **__: True)
    return "done"
