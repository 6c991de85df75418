"""What the contenders on transformers' own Trainer share: the model, its adapter and the arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments

from benchmarks.task import ALPHA, LEARNING_RATE, RANK, TARGETS, Task


def load_model(task: Task) -> Any:
    return AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, task.dtype)).to(task.device)


def lora(dropout: float) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=list(TARGETS),
        inference_mode=False,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
    )


def load_with_adapter(task: Task, dropout: float) -> Any:
    torch.manual_seed(task.seed)
    return get_peft_model(load_model(task), lora(dropout))


def settings(task: Task) -> dict[str, Any]:
    """Arguments of a Trainer, for one pass over the task's rows in their order."""
    return {
        "output_dir": task.folder,
        "per_device_train_batch_size": task.padded_batch,
        "gradient_accumulation_steps": task.accumulation,
        "max_steps": task.steps + 1,
        "learning_rate": LEARNING_RATE,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": task.device == "cpu",
        "seed": task.seed,
    }


def arguments(task: Task, **more: Any) -> TrainingArguments:
    return TrainingArguments(**settings(task), **more)


def token_rows(task: Task, order: Sequence[int]) -> list[dict[str, list[int]]]:
    """The task's tokens and labels as a Trainer's rows."""
    return [{"input_ids": task.input_ids[i], "labels": task.labels[i]} for i in order]
