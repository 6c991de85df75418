"""README.md of an export, the model card of both hubs, made from the run's own record; and the base's licence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import InputError
from luthier.export.record import Exported
from luthier.hub.refs import Local, Repo, parse_model
from luthier.model.adapters import read_card
from luthier.report import words
from luthier.report.record import RunFolder

LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "*TERMS*")
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
QUOTED = 4  # questions answered before and after
SETTINGS = (
    "adapter.rank",
    "adapter.alpha",
    "adapter.targets",
    "train.learning_rate",
    "train.batch_size",
    "train.epochs",
    "train.steps",
    "train.seed",
)


def copy_licences(base: Path, folder: Path) -> list[str]:
    """The base's licence files, which go with every copy of it."""
    found = sorted({file for pattern in LICENCES for file in base.glob(pattern) if file.is_file()})
    for file in found:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in found]


def write(folder: Path, run: RunFolder, record: Exported, base: Path) -> None:
    """README.md, from run.json, the recipe and the figures of the export."""
    thinking = read_card(run.adapter_dir).get("thinking")
    front = yaml.safe_dump(_front(record, base), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {run.name}", _origin(run, record), _use(record, thinking), _measured(record)]
    parts += [_trained(run), _answers(run), _licence(folder, record)]
    (folder / "README.md").write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def public_name(ref: str) -> str:
    """A base's name for other people: a hub's, or the last part of a path, which says nothing of this machine."""
    try:
        source = parse_model(ref)
    except InputError:  # a folder that is gone by now
        return Path(ref).name
    if isinstance(source, Local):
        return source.path.resolve().name
    return source.id if isinstance(source, Repo) else ref


def _front(record: Exported, base: Path) -> dict[str, Any]:
    """What hubs read: a base only where they have it."""
    library = {"merged": "transformers", "adapter": "peft", "gguf": "gguf", "ollama": "gguf"}[record.to]
    on_hub = {"base_model": record.base} if _ON_HUB.fullmatch(record.base) else {}
    relation = {"base_model_relation": "adapter" if record.to == "adapter" else "finetune"} if on_hub else {}
    facts = {"library_name": library, "pipeline_tag": "text-generation", "tags": ["luthier", "lora"]}
    return {**_licence_of(base), **on_hub, **relation, **facts}


def licence_name(folder: Path) -> str:
    """The licence in the card of a model, as hubs name it (`apache-2.0`); "other" where the card names none."""
    return _licence_of(folder).get("license", "other")


def _licence_of(folder: Path) -> dict[str, str]:
    """The licence as a model's own card names it."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        said = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        said = None
    keys = ("license", "license_name", "license_link")
    return {key: str(said[key]) for key in keys if key in said} if isinstance(said, dict) else {}


def _origin(run: RunFolder, record: Exported) -> str:
    revision = f" (revision `{record.revision}`)" if record.revision else ""
    what = {
        "merged": "fine-tuned with LoRA and merged into one ordinary model",
        "adapter": "a LoRA adapter for it",
        "gguf": f"fine-tuned with LoRA, as GGUF ({record.weights})",
        "ollama": f"fine-tuned with LoRA, as GGUF ({record.weights}) with a Modelfile",
    }[record.to]
    return f"`{record.base}`{revision}, {what}. Made with Luthier {record.luthier} on {record.made}."


def _switch(thinking: bool | None) -> str:
    """llama-server says by itself whether to think, whatever a template's default is."""
    said = {"enable_thinking": thinking}
    return "" if thinking is None else f" --chat-template-kwargs '{json.dumps(said)}'"


def _use(record: Exported, thinking: bool | None) -> str:
    stops = ', generation_config=GenerationConfig.from_pretrained("FOLDER")' if record.to == "adapter" else ""
    ask = (
        'messages = [{"role": "user", "content": "Hello"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
        f"output = model.generate(**inputs, max_new_tokens=256{stops})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    load = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    code = {
        "merged": f'```python\n{load}tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n{ask}\n```',
        "adapter": "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'base = AutoModelForCausalLM.from_pretrained("{_loadable(record.base)}")\n'
        f'model = PeftModel.from_pretrained(base, "FOLDER")\n{ask}\n```',
        "gguf": f"```\nllama-server -m model.gguf --jinja{_switch(thinking)}\n```\n\n"
        "Chat template and stop tokens are in the file.",
        "ollama": "```\nollama create NAME -f Modelfile\nollama run NAME\n```",
    }[record.to]
    return f"## Use\n\n{code}"


def _loadable(base: str) -> str:
    return base if _ON_HUB.fullmatch(base) else "FOLDER OF THE BASE"


def _measured(record: Exported) -> str:
    found = record.figures
    if found is None:
        return "## Checked against the trained model\n\nUnverified: it was not run."
    lines = [f"| {c.name} | {c.trained} | {c.exported} | {c.bound} |" for c in record.checks]
    head = "| | trained | exported | bound |\n|---|---|---|---|"
    how = f"{found.runtime}, {found.prompts} {found.source}, {found.positions} positions."
    if not found.chat:
        how += " Unverified: the program that runs it was not there, so its chat template was not tried."
    return f"## Checked against the trained model\n\n{how}\n\n{head}\n" + "\n".join(lines)


def _trained(run: RunFolder) -> str:
    record, recipe = run.record() or {}, run.read_recipe().model_dump(mode="json")
    result, data = record.get("result", {}), record.get("data", {})
    rows = []
    for file in data.get("files", []):
        rows.append(f"| data | `{Path(file['path']).name}`, {file['rows']:,} rows, SHA-256 `{file['sha256']}` |")
    for name in SETTINGS:
        section, _, key = name.partition(".")
        value = recipe[section][key]
        if value is not None:
            rows.append(f"| `{name}` | {value} |")
    if result:
        before, after = (words.loss(result[f"heldout_loss_{when}"]) for when in ("before", "after"))
        rows.append(f"| held-out loss before, after | {before}, {after} nats a token |")
        rows.append(f"| training loss at the end | {words.loss(result['train_loss'])} |")
        rows.append(f"| steps, time | {result['steps']}, {words.duration(result['seconds'])} |")
    system = recipe["data"]["system"]
    asked = f"\n\nSystem prompt of the training:\n\n{_fenced(system)}" if system else ""
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(rows) + asked


def _answers(run: RunFolder) -> str:
    quoted = (run.record() or {}).get("answers", [])[:QUOTED]
    blocks = [
        f"**{_line(answer['prompt'])}**\n\nbefore:\n\n{_fenced(answer['base'])}\n\nafter:\n\n{_fenced(answer['tuned'])}"
        for answer in quoted
    ]
    return "## Before and after\n\n" + "\n\n".join(blocks) if blocks else ""


def _licence(folder: Path, record: Exported) -> str:
    files = sorted({file.name for pattern in LICENCES for file in folder.glob(pattern)})
    if files:
        return f"## Licence\n\nThat of the base model: {', '.join(f'[{name}]({name})' for name in files)}."
    return f"## Licence\n\nThat of the base model, `{record.base}`, which came without a licence file."


def _line(text: str) -> str:
    """One line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """A block that no text can close."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
