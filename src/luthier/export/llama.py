"""llama.cpp, through llama-cpp-python where it is installed: runs a GGUF file, and makes a smaller one of it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.errors import InputError, Problem
from luthier.export.runtimes import RawMessages

INSTALL = f'"{sys.executable}" -m pip install llama-cpp-python'
"""It is compiled on installation, which takes a C++ compiler and minutes."""


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def need() -> None:
    """Raises InputError where llama-cpp-python is not installed."""
    if not is_installed():
        what = "is made by llama.cpp, and llama-cpp-python is not installed"
        fix = f"{INSTALL} (it is compiled then, with a C++ compiler), or --quant q8_0 or f16, which need neither"
        raise InputError(Problem("--quant q4_k_m", what, fix))


def quantize(source: Path, target: Path, ftype: str) -> None:
    """Writes `target` with the weights of a 16-bit or 32-bit `source` in `Q4_K_M` or another type of llama.cpp's.

    Raises OSError where llama.cpp could not write it.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{ftype}")
    with quiet():
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if status != 0:
        raise OSError(f"llama.cpp could not write {target.name} (status {status})")


@contextlib.contextmanager
def quiet() -> Any:
    """llama.cpp logs every tensor on standard error, past Python's own."""
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def nothing(level: int, text: bytes, data: Any) -> None:
        pass

    llama_cpp.llama_log_set(nothing, ctypes.c_void_p(0))
    try:
        yield
    finally:
        from llama_cpp._logger import llama_log_callback

        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


class LlamaCpp:
    """A GGUF file, asked through `create_chat_completion`: chat template and stop tokens are the file's."""

    def __init__(self, file: Path, *, context: int) -> None:
        from llama_cpp import Llama

        class Listening(Llama):  # type: ignore[misc]
            """Keeps the tokens that the chat path hands on."""

            sent: list[int]

            def create_completion(self, prompt: list[int], **options: Any) -> Any:
                self.sent = list(prompt)
                return super().create_completion(prompt, **options)

        self.title = f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')})"
        threads = torch.get_num_threads()
        self._llama = Listening(str(file), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def prompt_ids(self, messages: RawMessages) -> list[int]:
        self._ask(messages, 1)
        return self._llama.sent

    def logprobs(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> torch.Tensor:
        """One token at a time behind the prompt, as llama.cpp does when it answers."""
        self._llama.reset()
        rows = []
        for step in (list(prompt_ids), *([token] for token in answer_ids[:-1])):
            self._llama.eval(step)
            rows.append(self._logits())
        return torch.stack(rows).log_softmax(-1)

    def answer(self, messages: RawMessages, max_new_tokens: int) -> tuple[str, bool]:
        choice = self._ask(messages, max_new_tokens)["choices"][0]
        return (choice["message"]["content"] or "").strip(), choice["finish_reason"] == "stop"

    def tokens(self, text: str) -> list[int]:
        """A prompt as tokens, as Ollama sends its template's text: with the BOS token where the file wants one."""
        return list(self._llama.tokenize(text.encode(), add_bos=True, special=True))

    def _ask(self, messages: RawMessages, max_tokens: int) -> Any:
        options = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": max_tokens}
        return self._llama.create_chat_completion(messages=list(messages), **options)

    def _logits(self) -> torch.Tensor:
        """[V] float32 at the last token."""
        import llama_cpp
        import numpy

        pointer = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        return torch.from_numpy(numpy.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),)).copy())
