"""The requests of OpenAI's API that are understood, as pydantic models. What is not understood is refused, by name.

A field that would change the answer is obeyed or refused, never passed over; one that only OpenAI's own service has a
use for (`user`, `metadata`, `store` …) is accepted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator

from luthier.data.conversation import Message
from luthier.inference.batcher import Sampling

MOST_CHOICES, MOST_STOPS, MOST_ALTERNATIVES = 8, 4, 20


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed), Field(max_length=MOST_STOPS)]
Count = Annotated[int, Field(strict=True, ge=1)]

NO_TOOLS = "not supported: this server takes and returns text"


def only(*values: Any, why: str) -> AfterValidator:
    """A field that is known and cannot be obeyed: the values that ask for nothing, and what is said to any other."""

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(why)
        return value

    return AfterValidator(check)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_absent(cls, raw: Any) -> Any:
        """As in OpenAI's API, null is the same as leaving a field out."""
        return {key: value for key, value in raw.items() if value is not None} if isinstance(raw, dict) else raw


class StreamOptions(_Request):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False  # of OpenAI's own network; nothing is added here


class TemplateOptions(_Request):
    enable_thinking: StrictBool | None = None


class Generation(_Request, ABC):
    """What both ways of asking share."""

    model: str
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    seed: Annotated[int, Field(ge=-(2**62), lt=2**62)] | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=MOST_CHOICES)] = 1
    stop: Stops = []
    frequency_penalty: Annotated[Any, only(0, why="penalties are not supported; leave it at 0")] = 0
    presence_penalty: Annotated[Any, only(0, why="penalties are not supported; leave it at 0")] = 0
    logit_bias: Annotated[Any, only({}, why="biases are not supported")] = None
    # For OpenAI's own service: nothing here depends on them.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None

    @model_validator(mode="after")
    def _check_together(self) -> Any:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options: only with stream: true")
        return self

    @abstractmethod
    def most_tokens(self) -> int | None:
        """Of the answer, where the request says."""

    @abstractmethod
    def alternatives(self) -> int | None:
        """How many likeliest tokens are told of each; None: not even the chosen one's probability."""

    def sampling(self, max_new_tokens: int, choice: int) -> Sampling:
        """Of one of the `n` choices: each has a seed of its own, which follows from the request's."""
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            seed=None if self.seed is None else self.seed + choice,
            logprobs=self.alternatives(),
        )


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: str
    text: str = ""

    @model_validator(mode="after")
    def _only_text(self) -> TextPart:
        if self.type not in ("text", "input_text"):
            raise ValueError(f"a part of type {self.type!r:.40} cannot be read: this server takes text")
        return self


class ChatMessage(BaseModel):
    """What an answer of OpenAI's client holds besides (`refusal`, `annotations` …) may be sent back as it came."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None

    @model_validator(mode="after")
    def _has_text(self) -> ChatMessage:
        if self.tool_calls or self.function_call:
            raise ValueError(f"tools are {NO_TOOLS}")
        if self.content is None:
            raise ValueError("content is missing: a text is needed")
        return self

    def read(self) -> Message:
        content = self.content
        text = "\n".join(part.text for part in content) if isinstance(content, list) else content or ""
        role: Any = "system" if self.role == "developer" else self.role
        return Message(role, text, reasoning=self.reasoning_content if role == "assistant" else None)


class NamedSchema(_Request):
    """`strict` or not, answers are held to it."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: StrictBool | None = None


class ResponseFormat(_Request):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema: needed with the type json_schema, and with no other")
        return self

    def schema_of_answers(self) -> dict[str, Any] | None:
        """What an answer must be; None: any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Generation):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=MOST_ALTERNATIVES)] | None = None
    enable_thinking: StrictBool | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()
    tools: Annotated[Any, only([], why=NO_TOOLS)] = None
    functions: Annotated[Any, only([], why=NO_TOOLS)] = None
    tool_choice: Annotated[Any, only("none", "auto", why=NO_TOOLS)] = None
    function_call: Annotated[Any, only("none", "auto", why=NO_TOOLS)] = None
    response_format: ResponseFormat = ResponseFormat()
    modalities: Annotated[Any, only(["text"], why=NO_TOOLS)] = None
    audio: Annotated[Any, only(why=NO_TOOLS)] = None
    prediction: Annotated[Any, only(why="predicted output is not supported")] = None
    reasoning_effort: Annotated[Any, only(why="not supported; enable_thinking switches a model's thinking")] = None
    verbosity: Annotated[Any, only(why="not supported")] = None
    web_search_options: Annotated[Any, only(why="there is no web search")] = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        return self

    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def thinking(self) -> bool | None:
        """As asked; None: as the model was trained."""
        return self.chat_template_kwargs.enable_thinking if self.enable_thinking is None else self.enable_thinking


TokenId = Annotated[int, Field(strict=True, ge=0)]


class CompletionRequest(Generation):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    best_of: Annotated[Any, only(1, why="not supported; use n")] = None
    echo: Annotated[Any, only(False, why="the prompt is not repeated")] = None
    suffix: Annotated[Any, only("", why="nothing can be put behind the answer")] = None

    @model_validator(mode="after")
    def _has_a_prompt(self) -> CompletionRequest:
        if not self.prompts() or [] in self.prompts():
            raise ValueError("prompt: at least one token is needed")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or its tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            return [self.prompt] if self.prompt else []  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]

    def most_tokens(self) -> int | None:
        return self.max_tokens

    def alternatives(self) -> int | None:
        return self.logprobs
