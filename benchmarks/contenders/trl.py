"""TRL's SFTTrainer at its best: rows of like length, no checkpointing, its own loss on labels alone.

On a GPU Liger computes the layers, and with flash-attn the batches have no padding (`padding_free`). On a CPU,
padding-free rows attend through one dense mask over the whole batch, which costs more than the padding it saves.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from benchmarks.contenders.expert import grouped_by_length
from benchmarks.contenders.stock import load_model, lora, settings, token_rows
from benchmarks.meter import Meter
from benchmarks.task import Result, Task


def run(task: Task) -> Result:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = load_model(task)
    best = on_gpu(model) if task.device == "cuda" else {}
    meter = Meter(task)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **settings(task),
            **best,
            max_length=None,
            gradient_checkpointing=False,
            bf16=task.dtype == "bfloat16",
        ),
        train_dataset=Dataset.from_list(token_rows(task, grouped_by_length(task))),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        peft_config=lora(0.0),
        callbacks=[meter],
    )
    trainer.train()
    return meter.result(same_labels=True, notes=list(best) or ["padded, grouped by length"])


def on_gpu(model: Any) -> dict[str, bool]:
    best = {"use_liger_kernel": True}
    if importlib.util.find_spec("flash_attn") is not None:
        model.set_attn_implementation("flash_attention_2")
        best["padding_free"] = True
    return best
