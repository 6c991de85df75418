"""The recipe: every setting of a run, its type, its default and its meaning, in the field's own terms.

The string below a field is its documentation (shown by `luthier train --help-recipe` and in docs/recipe.md).
"auto" is resolved once, in `resolve.py`, to a value with a reason.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Count = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Unknown keys are errors, and no value is turned into another type behind the user's back."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class ModelSettings(Section):
    ref: str
    """Which model: `bundled:smollm2-135m-instruct`, a folder, `ms:Qwen/Qwen3-0.6B`, `hf:…`, or `Qwen/Qwen3-0.6B`."""
    revision: str | None = None
    """Branch, tag or commit on the hub. None: the hub's default."""
    chat_template: str | None = None
    """A template we ship (`chatml`, `instruction-response`) or a Jinja file. None: the model's own."""
    thinking: bool | None = None
    """Reasoning models: True or False fixes `enable_thinking`. None: off where the template knows it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for a model whose code you have read."""
    dtype: Auto | Literal["float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights and the products. auto: what this machine multiplies fastest and safely."""
    device: Auto | Literal["cpu", "cuda", "mps"] = "auto"
    """Where to compute. ROCm devices are called `cuda` by torch."""


class DataSettings(Section):
    train: str | list[str]
    """File, hub data set (`ms:…`, `hf:…`) or https:// address; several are read one after another."""
    heldout: str | None = None
    """A file of its own for held-out rows. None: they are split off `train`."""
    holdout: str | int = "5%"
    """How many training rows to hold out: a share ("5%") or a count. 0: none."""
    system: str | None = None
    """System prompt put before every conversation that has none of its own."""
    format: Auto | Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text"] = "auto"
    """What a row looks like. auto: recognised from its columns."""
    columns: dict[str, str] = {}
    """Where your columns have other names: `{instruction: question, output: answer}`."""
    max_length: Auto | Annotated[int, Field(gt=1)] = "auto"
    """Longest conversation, in tokens. auto: what the model can take, at most 4096."""
    too_long: Literal["drop", "cut_prompt", "error"] = "drop"
    """A row longer than that: leave it out, cut its prompt from the left (never its answer), or stop."""
    train_on: Literal["all", "last"] = "all"
    """Which assistant turns are learned."""
    bad_rows: Literal["error", "drop"] = "error"
    """Rows that cannot be used (a field missing, a broken line): name them all and stop, or leave them out."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that repeat an earlier row exactly."""

    @property
    def holds_out(self) -> bool:
        """Whether rows are asked to be held out."""
        return self.heldout is not None or str(self.holdout).strip() not in ("0", "0%")


class AdapterSettings(Section):
    method: Literal["lora"] = "lora"
    """How the model is changed. `lora`: small added matrices; the model's own weights stay."""
    rank: Count = 16
    """Width of the low-rank update."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input. Above 0 a shared prefix is computed again for every row."""
    targets: str | list[str] = "linear"
    """`linear`: every linear layer of the language model (no vision tower, no head); or a list of layer names."""


class TrainSettings(Section):
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the rows."""
    steps: Count | None = None
    """Optimizer steps instead of epochs."""
    batch_size: Auto | Count = "auto"
    """Rows in one optimizer step, on all devices together. auto: 16, unless `batch_tokens` says it."""
    batch_tokens: Count | None = None
    """Tokens in one optimizer step, instead of rows: an epoch is cut into steps of nearly as many."""
    gradient_accumulation_steps: Auto | Count = "auto"
    """Micro-batches in one optimizer step. auto: as many as `micro_batch_tokens` asks for."""
    micro_batch_tokens: Auto | Count = "auto"
    """Tokens computed at once. auto: from the memory at hand."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Size of a step at its highest. Small models and few rows take more."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up, if at all."""
    warmup: Annotated[float, Field(ge=0)] = 0.05
    """Steps of rising learning rate: a share of all steps below 1, a count from 1 on."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Pull of the adapter's weights towards 0."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm. 0: not clipped."""
    logging_steps: Count = 1
    """A line in events.jsonl and on the screen every so many steps, and at each evaluation and checkpoint."""
    save_steps: Auto | Count = "auto"
    """A checkpoint every so many steps. auto: ten in a run, and at most every 100 steps."""
    save_total_limit: Count = 2
    """Checkpoints kept."""
    eval_steps: Auto | Count = "auto"
    """Held-out loss every so many steps (always before the first and after the last). auto: five times in a run."""
    early_stopping_patience: Count | None = None
    """Stop after so many evaluations without a better held-out loss."""
    load_best: bool = False
    """Keep the checkpoint with the lowest held-out loss as the result, not the last one."""
    gradient_checkpointing: Auto | bool | Count = "auto"
    """Recompute layers in the backward pass: less memory, a third more time if all. auto: as few as memory demands."""
    offload_activations: bool = False
    """GPU: what layers keep for the backward pass waits in the host's memory. Slower; where nothing else fits."""
    cuda_graphs: Auto | bool = "auto"
    """GPU: a micro-batch's kernels are started all at once, which is faster with small models. auto: where it is."""
    cpu_processes: Auto | Count = "auto"
    """CPU on Linux: so many processes share the threads and the rows of a step. auto: where it is faster, and fits."""
    engine: Auto | Literal["flat", "plain"] = "auto"
    """`flat`: no padding, shared prefixes computed once. `plain`: padded batches of stock transformers."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Same seed, data and machine: same run."""
    deterministic: bool = False
    """GPU: the same bits each time, with slower kernels. A CPU's are always the same for one number of threads."""
    save_on_each_node: bool = False
    """Several machines: save on each, not only on the first."""


class TrackSettings(Section):
    to: list[Literal["swanlab", "tensorboard", "wandb"]] = []
    """Where curves are sent besides the run folder. Each is an extra: `pip install luthier[swanlab]`."""
    project: str = "luthier"
    """The project's name in the tracker."""
    cloud: bool = False
    """Send to the tracker's cloud with your account. False: files on this machine only."""


class Recipe(Section):
    """A whole run. `model: REF`, `data: FILE` and `track: [NAME]` are short for their `ref`, `train` and `to`."""

    model: ModelSettings
    data: DataSettings
    output: str
    """The run's folder."""
    adapter: AdapterSettings = AdapterSettings()
    train: TrainSettings = TrainSettings()
    track: TrackSettings = TrackSettings()
    prompts: list[str] = []
    """Questions asked before and after, besides those of held-out rows."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        return expand_short_forms(raw)


def expand_short_forms(raw: Any) -> Any:
    """`model: REF` → `model: {ref: REF}`, and so on. Anything else stays as it is, for the checks to name."""
    if not isinstance(raw, dict):
        return raw
    raw = {key: value for key, value in raw.items() if value is not None}  # a section left empty
    for section, key, kinds in (("model", "ref", str), ("data", "train", (str, list)), ("track", "to", list)):
        if isinstance(raw.get(section), kinds):
            raw[section] = {key: raw[section]}
    data = raw.get("data", {})
    if "system" in raw and isinstance(data, dict) and "system" not in data:  # the fourth line of a four-line recipe
        raw["data"] = {**data, "system": raw.pop("system")}
    return raw
