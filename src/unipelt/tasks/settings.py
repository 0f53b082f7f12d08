"""Settings of generation, without torch, so that `--help` reads them too."""

from dataclasses import dataclass

from unipelt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of generation."""

    max_new_tokens: int = 128
    """maximum number of generated tokens"""
    min_new_tokens: int = 0
    """minimum number of generated tokens"""
    num_beams: int = 1
    """number of beams in beam search; 1: greedy decoding"""
    no_repeat_ngram_size: int = 0
    """n-grams of this size do not occur twice in a text; 0: any may"""
    temperature: float = 0.0
    """sampling temperature; 0: no sampling"""
    top_p: float = 1.0
    """nucleus sampling: the most probable tokens up to this total probability"""
    seed: int = 0
    """random seed for sampling"""

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (1, 1_000_000), "min_new_tokens": (0, self.max_new_tokens), "num_beams": (1, 1000),
            "no_repeat_ngram_size": (0, 1000), "temperature": (0.0, 100.0), "top_p": (1e-6, 1.0),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise UserError(f"--{name.replace('_', '-')} {value}: expected {least:g} to {most:g}")
        if self.temperature and self.num_beams > 1:
            raise UserError(
                "--temperature samples tokens and --num-beams searches for the likeliest answer; give one of them"
            )
