"""Unsloth's model and kernels under TRL's trainer, as its own examples have them. GPU only."""

from __future__ import annotations

import unsloth  # isort: skip  # before transformers and TRL, which it changes

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.contenders.expert import grouped_by_length
from benchmarks.contenders.stock import settings, token_rows
from benchmarks.meter import Meter
from benchmarks.task import ALPHA, RANK, TARGETS, Result, Task


def run(task: Task) -> Result:
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        task.model, max_seq_length=task.longest, dtype=getattr(torch, task.dtype), load_in_4bit=False
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        use_gradient_checkpointing=False,
        random_state=task.seed,
    )
    meter = Meter(task)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings(task), max_length=task.longest, bf16=task.dtype == "bfloat16"),
        train_dataset=Dataset.from_list(token_rows(task, grouped_by_length(task))),
        processing_class=tokenizer,
        callbacks=[meter],
    )
    trainer.train()
    return meter.result(same_labels=True)
