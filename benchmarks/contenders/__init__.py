"""Those who run the race: one small module each, with `run(task) -> Result`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """`module` of this package, called as `run(task, **options)`.

    `requirements`: of an environment of its own, with Luthier's torch unless they name one; none for Luthier's.
    """

    module: str
    what: str
    options: dict[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    gpu_requirements: tuple[str, ...] = ()
    gpu_only: bool = False


CONTENDERS = {
    "tutorial": Contender("tutorial", "the tutorial's script: batches of 16, gradient checkpointing, dropout 0.1"),
    "expert": Contender("expert", "the same tuned: rows of like length in a batch, no checkpointing, no dropout"),
    "trl": Contender(
        "trl",
        "TRL's SFTTrainer at its best here",
        requirements=("trl==1.16.0", "transformers>=5.20,<6", "peft>=0.21.2"),
        gpu_requirements=("liger-kernel",),
    ),
    "llamafactory": Contender(
        "llamafactory",
        "LLaMA-Factory",
        # It imports torchaudio, which ends at 2.11: left to itself, pip takes a newer torch that cannot load it.
        requirements=("llamafactory==0.9.5", "torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0"),
        gpu_requirements=("liger-kernel",),
    ),
    "unsloth": Contender("unsloth", "Unsloth", requirements=("unsloth",), gpu_only=True),
    "plain": Contender("luthier", "Luthier with train.engine: plain", {"engine": "plain"}),
    "flat": Contender("luthier", "Luthier as it comes", {"engine": "auto"}),
    "limit": Contender("limit", "the matrix products that cannot be avoided, at this machine's rate"),
}
