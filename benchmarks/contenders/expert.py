"""The tutorial's script in the hands of an expert: rows of like length in a batch, no checkpointing, no dropout."""

from __future__ import annotations

import random

from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer

from benchmarks.contenders.stock import arguments, load_with_adapter, token_rows
from benchmarks.meter import Meter
from benchmarks.task import Result, Task


def run(task: Task) -> Result:
    meter = Meter(task)
    trainer = Trainer(
        model=load_with_adapter(task, dropout=0.0),
        args=arguments(task, bf16=task.dtype == "bfloat16"),
        train_dataset=token_rows(task, grouped_by_length(task)),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(task.model), padding=True),
        callbacks=[meter],
    )
    trainer.train()
    return meter.result(same_labels=True)


def grouped_by_length(task: Task) -> list[int]:
    """Rows in an order that fills each padded batch with rows of like length, the batches in random order.

    The warm-up step keeps its rows and the measured steps share theirs, so that every contender's first step, and all
    its measured steps together, hold the same rows.
    """
    lengths = [len(ids) for ids in task.input_ids]
    order = []
    for part in (task.warm_up, task.measured):
        rows = sorted(range(len(lengths))[part], key=lengths.__getitem__)
        batches = [rows[start : start + task.padded_batch] for start in range(0, len(rows), task.padded_batch)]
        random.Random(task.seed).shuffle(batches)
        order += [row for batch in batches for row in batch]
    return order
