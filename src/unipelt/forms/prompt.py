"""Soft prompts: Lester et al. 2021, arXiv:2104.08691."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unipelt.forms.routed import Route, draw_uniform

Embed = Callable[[Int[Tensor, " n"]], Float[Tensor, "n d"]]


class Prompt(nn.Module):
    """P of each row's run, `length` vectors as wide as the base's token embeddings

    embed: the base's token embedding, for ids below `tokens`; P starts at the embeddings of random tokens. None: P starts at
    U(−0.5, 0.5).
    """

    def __init__(self, runs: int, length: int, size: int, tokens: int, embed: Embed | None):
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(runs, length, size))
        self.tokens, self.embed = tokens, embed

    def forward(self, route: Route, batch: int) -> Float[Tensor, "rows prompt d"]:
        return route.pick(self.vectors, batch)

    @torch.no_grad()
    def reset_parameters(self, run: int, generator: torch.Generator) -> None:
        if self.embed is None:
            draw_uniform(self.vectors, run, generator, 0.5)
            return
        drawn = self.embed(torch.randint(self.tokens, self.vectors.shape[1:2], generator=generator))
        if not drawn.is_meta:
            self.vectors[run] = drawn
