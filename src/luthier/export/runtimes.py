"""The programs that run an export, each asked through its own chat path: no renderer of Luthier's is in between."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from luthier.engine.instance import takes_logits_to_keep

RawMessages = Sequence[dict[str, str]]


class Runtime(Protocol):
    """A loaded export."""

    title: str
    """Name and version, as in `transformers 5.23.0`."""

    def prompt_ids(self, messages: RawMessages) -> list[int]:
        """The tokens that it makes of a conversation [P]."""
        ...

    def logprobs(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
        """Natural log-probabilities [A, V] float32 of what follows the prompt and each answer token but the last."""
        ...

    def answer(self, messages: RawMessages, max_new_tokens: int) -> tuple[str, bool]:
        """The greedy answer, and whether it ended by itself."""
        ...


class Transformers:
    """A merged folder; or with `base`, that folder's model with the adapter in `folder`."""

    def __init__(self, folder: Path, *, base: Path | None = None, trust_remote_code: bool = False) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        self.title = f"transformers {importlib.metadata.version('transformers')}"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        # An adapter is measured in float32, as its reference is; a merged model in the dtype in which it is saved.
        dtype = torch.float32 if base else "auto"
        model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=dtype, trust_remote_code=trust_remote_code)
        if base:
            from peft import PeftModel

            self.title += f", peft {importlib.metadata.version('peft')}"
            model = PeftModel.from_pretrained(model, folder)
        self.model = model.eval()
        self._config = GenerationConfig.from_pretrained(folder)

    def prompt_ids(self, messages: RawMessages) -> list[int]:
        encoded = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        return [int(token) for token in encoded["input_ids"]]

    def logprobs(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
        return next_logprobs(self.model, prompt_ids, answer_ids)

    def answer(self, messages: RawMessages, max_new_tokens: int) -> tuple[str, bool]:
        ids = greedy(self.model, self.prompt_ids(messages), self._config, max_new_tokens)
        stops = self._config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip(), ids[-1] in stops


def next_logprobs(model: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
    """[A, V] float32 on the CPU. See `Runtime.logprobs`."""
    ids = torch.tensor([[*prompt_ids, *answer_ids[:-1]]], device=model.device)
    options = {"logits_to_keep": len(answer_ids)} if takes_logits_to_keep(model) else {}
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **options).logits[0, -len(answer_ids) :]
    return torch.as_tensor(logits.float().log_softmax(-1).cpu())


def greedy(model: Any, prompt_ids: Sequence[int], config: Any, max_new_tokens: int) -> list[int]:
    """The likeliest answer as tokens, with the stop token where it ended by itself."""
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            max_new_tokens=max_new_tokens,
            **options,
        )
    return [int(token) for token in output[0, len(prompt_ids) :]]


class Gguf:
    """A GGUF file's weights as transformers reads them: no chat path, so no proof of one."""

    def __init__(self, file: Path) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils.quantization_config import GgufConfig

        self.title = f"transformers {importlib.metadata.version('transformers')} (weights alone)"
        with quiet_reader():
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
        self.model = model.eval()

    def logprobs(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
        return next_logprobs(self.model, prompt_ids, answer_ids)


@contextlib.contextmanager
def quiet_reader() -> Iterator[None]:
    """transformers' GGUF reader shows a bar that has no switch (5.23)."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
