"""Training code of audits of sharded runs, for `library_audit`: ranks of FSDP2, and one plain process that does the same.

Every stage has rows of every rank; the last one trains the head alone. What training gives without a stage is told by plain FSDP2, and
by one process with a loop of its own; auditspec is imported where the run is recorded only.
"""

from __future__ import annotations

NETS = {
    "mlp": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.to(KIND))))
""",
    "gpt": """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, h):
        q, k, v = self.qkv(self.norm(h)).view(*h.shape[:2], 2, 12).transpose(1, 2).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return h + self.out(mixed.transpose(1, 2).flatten(2))


class Embed(nn.Module):
    '''Every feature is a token.'''

    def __init__(self):
        super().__init__()
        self.value = nn.Linear(1, 8)
        self.place = nn.Parameter(0.1 * torch.arange(24.0).view(3, 8).cos())

    def forward(self, x):
        return self.value(x.unsqueeze(-1)) + self.place


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(Embed(), Block()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x.to(KIND))[:, -1])
""",
}
TRAINING = """
import json
import os
import subprocess
from contextlib import contextmanager

KIND, WORLD, CLIP = torch.KIND_OF, WORLD_OF, 0.5
STEPS = {"base": 10, "labels": 8, "polish": 4}


def build_model():
    return Net().to(KIND)


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def rows_of(number, step, rank, part):
    return [(11 * step + 7 * number + 29 * rank + 5 * i + 3 * part) % 80 for i in range(6 - (rank == 1))]


def optimizer_of(model, stage):
    for p in model.body.parameters():
        p.requires_grad = stage != "polish"
    return torch.optim.AdamW(model.parameters(), lr=RATES[stage])


def sharded():
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = build_model()
    for part in model.body.children():
        fully_shard(part)
    return fully_shard(model)


def train(model, stage, number, loss_of):
    rank = torch.distributed.get_rank()
    optimizer = optimizer_of(model, stage)
    with loss_of(stage, optimizer) as loss:
        for step in range(STEPS[stage]):
            optimizer.zero_grad()
            for part in range(2):
                model.set_requires_gradient_sync(part == 1)
                loss(rows_of(number, step, rank, part)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    optimizer.zero_grad()


def train_alone(model, stage, number, frame):
    optimizer = optimizer_of(model, stage)
    for step in range(STEPS[stage]):
        optimizer.zero_grad()
        for rank in range(WORLD):
            for part in range(2):
                batch = load_batch(Held(frame), rows_of(number, step, rank, part))
                (objective(model, batch) / 2 / WORLD).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    optimizer.zero_grad()


class Held:
    def __init__(self, frame):
        self.frame = frame


def whole(model):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def on_rank_record():
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    from auditspec import Dataset, Recorder

    model = sharded()
    with Recorder("record", model, every=EVERY, factory=build_model, load_batch=LOAD) as recorder:
        for number, (stage, source) in enumerate(STAGES):
            data = Dataset.open(Path(f"{source}.parquet"))

            @contextmanager
            def loss_of(stage, optimizer):
                with recorder.stage(
                    stage, optimizer, objective, dataset=data, steps=STEPS[stage], clip_norm=CLIP
                ) as run:
                    yield lambda rows: run.loss(rows, weight=1 / 2)

            train(model, stage, number, loss_of)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id="deployed")


def on_rank_truth():
    margins, runs = {}, tables()
    for without in (None, *(stage for stage, _ in STAGES)):
        model = sharded()
        for number, (stage, source) in enumerate(STAGES):

            @contextmanager
            def loss_of(stage, optimizer):
                data = Held(runs[source])
                yield lambda rows: objective(model, load_batch(data, rows)) / 2

            if stage != without:
                train(model, stage, number, loss_of)
        state = whole(model)
        if torch.distributed.get_rank() == 0:
            model = build_model()
            model.load_state_dict(state)
            margins[str(without)] = margin(model)
    assert "auditspec" not in sys.modules
    if torch.distributed.get_rank() == 0:
        Path("sharded.json").write_text(json.dumps(margins))


def record():
    for name, frame in tables().items():
        frame.astype({"y": int}).to_parquet(f"{name}.parquet")
    on_ranks("record")


def truth():
    on_ranks("truth")
    margins, runs = json.loads(Path("sharded.json").read_text()), tables()
    for without in (None, *(stage for stage, _ in STAGES)):
        torch.manual_seed(0)
        model = build_model()
        for number, (stage, source) in enumerate(STAGES):
            if stage != without:
                train_alone(model, stage, number, runs[source])
        assert abs(margin(model) - margins[str(without)]) < BOUND, (without, margin(model), margins)
    assert "auditspec" not in sys.modules
    print(json.dumps(margins))


def on_ranks(what):
    ranks = [
        subprocess.Popen([sys.executable, sys.argv[0], what, str(rank)]) for rank in range(WORLD)
    ]
    assert [rank.wait(300) for rank in ranks] == [0] * WORLD


def main():
    torch.set_num_threads(1)
    what = sys.argv[1]
    if len(sys.argv) == 2:
        return {"record": record, "truth": truth}[what]()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/{what}.store", rank=int(sys.argv[2]), world_size=WORLD
    )
    {"record": on_rank_record, "truth": on_rank_truth}[what]()
    torch.distributed.destroy_process_group()
"""


def training(net: str, world: int, kind: str) -> str:
    """The training code.

    Args:
        net: of `NETS`.
        world: how many ranks.
        kind: the type of its numbers.
    """
    bound = "1e-12" if kind == "float64" else "1e-5"
    own = TRAINING.replace("KIND_OF", kind).replace("WORLD_OF", str(world))
    return NETS[net] + own.replace("BOUND", bound)
