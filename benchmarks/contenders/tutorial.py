"""The tutorial's script with exactly its settings: its own prompt, padded batches, gradient checkpointing, dropout.

Where its format or memory cannot hold the job's rows, the note says what was changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer

from benchmarks.contenders.stock import arguments, load_with_adapter, token_rows
from benchmarks.meter import Meter
from benchmarks.task import Result, Task

BATCH, STEP_ROWS, MAX_LENGTH = 16, 32, 1024


def run(task: Task) -> Result:
    task = replace(task, padded_batch=min(BATCH, task.padded_batch))
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    single = all(len(messages) == 3 for messages in task.messages)  # system, user, assistant: all its format knows
    rows = [tutorial_row(tokenizer, *messages) for messages in task.messages] if single else None
    meter = Meter(task)
    trainer = Trainer(
        model=load_with_adapter(task, dropout=0.1),
        args=arguments(task, gradient_checkpointing=True),
        train_dataset=rows or token_rows(task, range(len(task.input_ids))),
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
        callbacks=[meter],
    )
    trainer.train()
    return meter.result(same_labels=not single, notes=notes(task, single=single))


def tutorial_row(
    tokenizer: Any, system: dict[str, str], user: dict[str, str], answer: dict[str, str]
) -> dict[str, list[int]]:
    """The tutorial's hand-written template: `<s>` first, an empty thought, the padding token as the end of a turn."""
    prompt = tokenizer(
        f"<s><|im_start|>system\n{system['content']}<|im_end|>\n"
        f"<|im_start|>user\n{user['content']}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        add_special_tokens=False,
    )["input_ids"]
    response = [*tokenizer(answer["content"], add_special_tokens=False)["input_ids"], tokenizer.pad_token_id]
    ids = prompt + response
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + response}


def notes(task: Task, *, single: bool) -> list[str]:
    found = ["its own prompt format"] if single else ["Luthier's tokens: its format has no turns"]
    if task.padded_batch != BATCH:
        found.append(f"batches of {task.padded_batch} instead of {BATCH}")
    if task.batch_size != STEP_ROWS:
        found.append(f"{task.batch_size} rows a step instead of {STEP_ROWS}")
    if task.longest > MAX_LENGTH:
        found.append(f"rows are not cut at {MAX_LENGTH} tokens")
    return found
