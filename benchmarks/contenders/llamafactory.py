"""LLaMA-Factory with rows of like length and no checkpointing. It renders the rows itself, as it reads the template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.contenders.expert import grouped_by_length
from benchmarks.contenders.stock import settings
from benchmarks.meter import Meter
from benchmarks.task import ALPHA, RANK, TARGETS, Result, Task

COLUMNS = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def run(task: Task) -> Result:
    from llamafactory.train.tuner import run_exp

    meter = Meter(task)
    run_exp(arguments(task), callbacks=[meter])
    return meter.result(same_labels=False, notes=["its own rendering of the rows"])


def arguments(task: Task) -> dict[str, Any]:
    folder = Path(task.folder)
    rows = [{"messages": task.messages[i]} for i in grouped_by_length(task)]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    data = {"rows": {"file_name": "rows.json", **COLUMNS}}
    (folder / "dataset_info.json").write_text(json.dumps(data), encoding="utf-8")
    usual = settings(task)
    del usual["train_sampling_strategy"]  # which its transformers does not know
    return {
        **usual,
        "model_name_or_path": str(model_in_dtype(task)),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "lora_target": ",".join(TARGETS),
        "dataset_dir": task.folder,
        "dataset": "rows",
        "cutoff_len": task.longest + 64,
        "mask_history": task.train_on == "last",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "enable_liger_kernel": task.device == "cuda",
        "bf16": task.dtype == "bfloat16",
        "preprocessing_num_workers": 1,
    }


def model_in_dtype(task: Task) -> Path:
    """The model's folder, or a copy whose config names the task's dtype: it trains in what the config says."""
    folder, copy = Path(task.model), Path(task.folder) / "model"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("dtype") == task.dtype:
        return folder
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps({**config, "dtype": task.dtype}), encoding="utf-8")
    return copy
