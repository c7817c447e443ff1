"""What a Trainer may do that a record cannot hold: refused by name, before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import Trainer

from auditspec.errors import RecordError

_SWITCHES = {
    "torch_compile": "compile the model in its factory, by model.compile()",
    "load_best_model_at_end": "load the best checkpoint after the record, as its own artifact",
    "auto_find_batch_size": "set per_device_train_batch_size",
    "use_liger_kernel": "train without it: it patches the model's code",
    "sync_ref_model": "train against a fixed reference model",
    "precompute_ref_log_probs": (
        "recorder.extend(…) with a function that calls keep_reference, and ref_model=reference_of(model): "
        "precomputed, they would stay those of the recorded model in the run without an earlier stage"
    ),
}
"""Arguments of trainers that are refused, each with the remedy."""
_GENERATING = ("GRPOTrainer", "RLOOTrainer", "PPOTrainer", "OnlineDPOTrainer", "NashMDTrainer")
"""Trainers whose data the model itself makes while it is trained."""


def refuse(trainer: Any, model: nn.Module, before: Mapping[str, Any], processes: int = 1) -> None:
    """Refuse a trainer that does what a record cannot hold.

    Args:
        trainer: as it was built.
        model: of the recorder.
        before: its `forms` before that.
        processes: that the recorder knows of.

    Raises:
        RecordError: naming it, and what to do instead.
    """
    if not isinstance(trainer, Trainer):
        raise RecordError(
            f"a {type(trainer).__name__} is no transformers.Trainer", "build one, or one of TRL's"
        )
    args = trainer.args
    for kind in type(trainer).__mro__:
        if kind.__name__ in _GENERATING:
            raise RecordError(
                f"{kind.__name__} trains on what the model generates meanwhile",
                "a run without a stage would generate otherwise; record training on fixed data",
            )
    for switch, remedy in _SWITCHES.items():
        if getattr(args, switch, False):
            raise RecordError(f"{switch}=True cannot be recorded", remedy)
    if args.n_gpu > 1:
        raise RecordError(
            f"training on {args.n_gpu} devices in one process (DataParallel) cannot be recorded",
            "make one device visible (CUDA_VISIBLE_DEVICES=0), or start a process a device with torchrun",
        )
    if args.world_size != processes:
        raise RecordError(
            f"the trainer runs on {args.world_size} processes, the recorder was made on {processes}",
            "call torch.distributed.init_process_group before the recorder is made, on every rank",
        )
    if trainer.model_init is not None:
        raise RecordError("model_init builds another model", "pass the model that is given")
    if getattr(trainer, "aux_loss_enabled", False) and args.gradient_accumulation_steps > 1:
        raise RecordError(
            "the router's loss of a mixture of experts depends on the accumulation",
            "train with gradient_accumulation_steps=1",
        )
    _refuse_other_model(trainer, model, before)


def _refuse_other_model(trainer: Any, model: nn.Module, before: Mapping[str, Any]) -> None:
    """Refuse a trainer that wrapped or changed the model, or that computes with others beside it.

    Raises:
        RecordError: if it did.
    """
    now = forms(model)
    odd = sorted(n for n in now.keys() | before.keys() if now.get(n) != before.get(n))
    if trainer.model is not model or odd:
        what = f" ({', '.join(odd[:3])})" if odd else ""
        raise RecordError(
            f"building the trainer changed the model{what}, as peft_config= and adapters do",
            "change it before: recorder.extend(…) with a function at the top of a module, which may give "
            "get_peft_model(model, …)",
        )
    own = set(model.modules())
    for name, value in vars(trainer).items():
        if (
            isinstance(value, nn.Module)
            and value not in own
            and any(True for _ in value.parameters())
        ):
            raise RecordError(
                f"the trainer's {name} is no part of the recorded model: in the run without an earlier "
                "stage it would stay as it is",
                "recorder.extend(…) with a function that calls keep_reference, and "
                "ref_model=reference_of(model)",
            )


def refuse_batch(batch: Mapping[str, Any]) -> None:
    """Refuse a batch that holds what a reference model said.

    Raises:
        RecordError: naming it, and what to do instead.
    """
    for key in batch:
        if key.startswith(("ref_", "reference_")):
            raise RecordError(
                f"the batches hold '{key}', which a reference model computed",
                _SWITCHES["precompute_ref_log_probs"],
            )


def forms(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Shape, precision, and whether it is trained, of every parameter and buffer."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (t.shape, t.dtype, t.requires_grad) for name, t in tensors.items()}
