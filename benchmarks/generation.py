"""Tokens a second that answers are generated with: each way on the same model and prompts, in one process.

    python -m benchmarks.generation --dtype bfloat16
    python -m benchmarks.generation --way luthier-8 --way llama.cpp-8 --gguf model-f16.gguf

A way is a name and how many requests come at once. `-adapter`: with a LoRA adapter of rank 8 on every linear layer;
`-adapters`: with four of them in turn; `-merged`: the adapter as part of the weights. Prompts are short questions under
one system prompt, every answer has `--tokens` tokens, and the time is that of prompts and answers together. llama.cpp
needs llama-cpp-python, and a GGUF of the model.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run_command
from benchmarks.machine import describe
from benchmarks.models import model_folder
from benchmarks.rows import dialogue
from luthier import console
from luthier.choice import Choice
from luthier.errors import InputError, Problem
from luthier.inference.opened import Opened, open_ref

WAYS = (
    "generate-1",
    "generate-8",
    "continuous-8",
    "luthier-1",
    "luthier-8",
    "luthier-32",
    "generate-1-adapter",
    "luthier-1-adapter",
    "luthier-1-merged",
    "luthier-8-adapter",
    "luthier-8-adapters",
    "llama.cpp-1",
    "llama.cpp-8",
)

Run = Callable[[list[list[int]], int], int]
"""Prompts, and the tokens of each answer → how many were made."""


def bench(
    way: Annotated[list[str] | None, typer.Option(help=f"What is measured: {', '.join(WAYS)}.")] = None,
    model: Annotated[str, typer.Option(help="A folder or a hub's name.")] = "bundled:smollm2-135m-instruct",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="Processor threads.")] = None,
    tokens: Annotated[int, typer.Option(help="Of each answer.")] = 48,
    repeat: Annotated[int, typer.Option(help="Runs of each, with other questions; the median is shown.")] = 1,
    gguf: Annotated[Path | None, typer.Option(help="The model for llama.cpp.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for models that are made.")] = Path("build/bench/models"),
) -> None:
    """Tokens a second, way by way."""
    import torch

    names = way or [each for each in WAYS if gguf or "llama" not in each]
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        raise InputError(Problem(f"--way {unknown[0]}", "there is no such way", f"name one of: {', '.join(WAYS)}"))
    folder = model_folder(model, work, layers=None)
    facts = describe("cpu", Choice(dtype, f"{threads or torch.get_num_threads()} threads"))
    console.say(facts["summary"])
    for name in names:
        kind, number, *extra = name.split("-")
        count = int(number)
        opened = open_ref(str(folder), dtype=dtype)
        torch.set_num_threads(threads or torch.get_num_threads())
        rows = dialogue(random.Random(0), 1 + count * repeat)
        prompts = [opened.renderer.prompt_ids(_messages(row[:2])) for row in rows]
        seconds = []
        with KINDS[kind](opened, "".join(extra), gguf) as run:
            run(prompts[:1], 4)  # warms up
            for first in range(1, len(prompts), count):
                begin = time.perf_counter()
                made = run(prompts[first : first + count], tokens)
                seconds.append(time.perf_counter() - begin)
                if made != tokens * count:
                    raise RuntimeError(f"{name} made {made} tokens")
        middle = statistics.median(seconds)
        console.say(f"{name:20} {tokens * count / middle:8.1f} tokens/s   ({middle:.2f} s)")


def _messages(row: list[dict[str, str]]) -> Any:
    from luthier.data.conversation import Message

    return [Message(message["role"], message["content"]) for message in row]  # type: ignore[arg-type]


@contextlib.contextmanager
def generate(opened: Opened, extra: str, gguf: Path | None) -> Iterator[Run]:
    """transformers' own: prompts padded on the left."""
    import torch
    from transformers import GenerationConfig

    model = _with_adapter(opened.model) if extra else opened.model
    pad = opened.renderer.end_of_turn_id

    def run(prompts: list[list[int]], count: int) -> int:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
        config = GenerationConfig(pad_token_id=pad, max_new_tokens=count, do_sample=False, eos_token_id=-1)
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return int(output[:, width:].numel())

    yield run


@contextlib.contextmanager
def continuous(opened: Opened, extra: str, gguf: Path | None) -> Iterator[Run]:
    """transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    def run(prompts: list[list[int]], count: int) -> int:
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1)
        batching = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512)
        found = opened.model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching, warmup=False
        )
        return sum(len(each.generated_tokens) for each in found.values())

    yield run


@contextlib.contextmanager
def luthier(opened: Opened, extra: str, gguf: Path | None) -> Iterator[Run]:
    """The batcher behind chat and server."""
    from luthier.inference.batcher import Ask, Batcher, Sampling
    from luthier.model import adapters

    renderer = copy.copy(opened.renderer)
    renderer.stop_ids = []  # so that every answer has its length
    names = {"": ["base"], "merged": ["base"], "adapter": ["0"], "adapters": ["0", "1", "2", "3"]}[extra]
    with tempfile.TemporaryDirectory() as scratch:
        if extra == "merged":
            opened = dataclasses.replace(opened, model=_with_adapter(opened.model).merge_and_unload())
        elif extra:
            tuned = _with_adapter(opened.model)
            place = Path(scratch) / "adapter"
            base = opened.base
            adapters.save(tuned, place, renderer, base_ref=base.ref, base_folder=base.path, system=None)
            opened = dataclasses.replace(opened, model=tuned.unload())
        batcher = Batcher(dataclasses.replace(opened, renderer=renderer), max_batch=32)
        for name in names if extra.startswith("adapter") else []:
            batcher.add(name, place)

        def run(prompts: list[list[int]], count: int) -> int:
            asks = [Ask(ids, names[i % len(names)], Sampling(count)) for i, ids in enumerate(prompts)]
            return sum(sum(1 for _ in answer) for answer in [batcher.submit(ask) for ask in asks])

        try:
            yield run
        finally:
            batcher.close()


@contextlib.contextmanager
def llama(opened: Opened, extra: str, gguf: Path | None) -> Iterator[Run]:
    """llama.cpp, its requests side by side in one batch."""
    import llama_cpp
    import numpy as np
    import torch

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 1024 * 8, 1024, 512, 8
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Tokens as (id, position, sequence, whether the next is wanted) → the likeliest next ones."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        found = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(context, i)
                found.append(int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax()))
        llama_cpp.llama_batch_free(batch)
        return found

    def run(prompts: list[list[int]], count: int) -> int:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        latest = [
            decode([(token, at, sequence, at == len(ids) - 1) for at, token in enumerate(ids)])[0]
            for sequence, ids in enumerate(prompts)
        ]
        for step in range(count - 1):
            latest = decode([(t, len(prompts[s]) + step, s, True) for s, t in enumerate(latest)])
        return count * len(prompts)

    yield run
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def _with_adapter(model: Any) -> Any:
    import torch

    from luthier.model.adapters import attach
    from luthier.recipe.schema import AdapterSettings

    tuned = attach(model, AdapterSettings(rank=8, alpha=16)).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.001)
    return tuned


KINDS: dict[str, Callable[[Opened, str, Path | None], contextlib.AbstractContextManager[Run]]] = {
    "generate": generate,
    "continuous": continuous,
    "luthier": luthier,
    "llama.cpp": llama,
}


if __name__ == "__main__":
    run_command(bench)
