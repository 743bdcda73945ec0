"""What fine-tuning can do against forgetting, for lib.train's one loop: a pull to the start point, replay of
general text, another optimizer, and the interpolation between before and after.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import TrainerCallback

from lib.packing import Encoded, draw


class PullToStart(TrainerCallback):
    """L2-SP: the loss plus strength / 2 |theta - theta_0|^2 (Li et al. 2018, "Explicit Inductive Bias for
    Transfer Learning with Convolutional Networks", arXiv:1802.01483).

    The penalty's gradient is added right before the optimizer's step, behind the clipping of the loss's own.
    """

    def __init__(self, start: nn.Module, strength: float) -> None:
        self.start, self.strength = start, strength

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, model, **_):
        for parameter, start in zip(model.parameters(), self.start.parameters(), strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start.to(parameter.device), alpha=self.strength)


def with_replay(
    train: Sequence[Encoded], general: Sequence[Encoded], tokens: int, share: float, seed: int
) -> list[Encoded]:
    """Documents of `train` for `tokens` tokens, in `seed`'s order; with a `share`, that part of the tokens is of
    `general` instead, and both are shuffled together (experience replay: Rolnick et al. 2019, arXiv:1811.11682).
    """
    if not share:
        return draw(train, tokens, seed)
    mixed = draw(train, round(tokens * (1 - share)), seed) + draw(general, round(tokens * share), seed)
    generator = torch.Generator().manual_seed(seed)
    return [mixed[i] for i in torch.randperm(len(mixed), generator=generator).tolist()]


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks, AdamW for all else (Jordan et al. 2024; the split is theirs).

    Muon replaces a matrix's Nesterov momentum (0.95) by a nearly orthogonal matrix, through 5 Newton-Schulz steps.
    Its step is scaled to the size of AdamW's, 0.2 sqrt(longer side), so that a learning rate means the same for both
    (Liu et al. 2025, arXiv:2502.16982). GPT-2's query, key and value are one matrix here, as they are stored. As in
    Trainer's AdamW, weights of one dimension do not decay. One optimizer to the outside: a schedule and a checkpoint
    reach both parts.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
        inside = {id(p) for p in blocks.parameters() if p.ndim == 2}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in inside]
        tables = [p for p in trained if id(p) not in inside and p.ndim > 1]
        vectors = [p for p in trained if p.ndim == 1]
        at = {"lr": learning_rate, "weight_decay": weight_decay}
        others = [{"params": tables}, {"params": vectors, "weight_decay": 0.0}]
        self.parts = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **at), torch.optim.AdamW(others, **at)]
        super().__init__([g for part in self.parts for g in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts' own groups are this optimizer's: what a schedule writes here, they read."""
        self.param_groups = [g for part in self.parts for g in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def muon(model: nn.Module, learning_rate: float, weight_decay: float) -> Muon:
    """`Muon`. Raises ValueError where this torch has none."""
    if reason := no_muon():
        raise ValueError(reason)
    return Muon(model, learning_rate, weight_decay)


def no_muon() -> str:
    """Why there is no Muon here; "" where there is."""
    if hasattr(torch.optim, "Muon"):
        return ""
    return (
        f"optimizer='muon' needs torch 2.9 or newer and this is {torch.__version__}: update torch, or take "
        "optimizer='adamw'."
    )


@torch.no_grad()
def interpolate(before: nn.Module, after: nn.Module, alpha: float) -> nn.Module:
    """A copy of `after` with weights (1 - alpha) before + alpha after (WiSE-FT: Wortsman et al. 2022,
    arXiv:2109.01903). Tied weights are one parameter under its first name, and move once. Raises ValueError for
    models that differ in their parameters.
    """
    model = copy.deepcopy(after)
    start, own = (dict(m.named_parameters()) for m in (before, model))
    if {k: v.shape for k, v in start.items()} != {k: v.shape for k, v in own.items()}:
        raise ValueError("Weights of two architectures cannot be interpolated: pass one model's two states.")
    for name, weight in own.items():
        weight.lerp_(start[name].to(weight), 1 - alpha)
    return model
