"""Linear layers in 8-bit integers, for prediction on a CPU.

A fine-tuned model -> the same model with the linear layers of its encoder replaced. Weights are
rounded once, each output channel by its own scale; inputs as they come, each token by its own
scale ("dynamic"), so that a text's answer does not depend on the texts beside it. The product is
exact, in 32-bit integers; embeddings, attention, norms, pooler and classifier stay as they are.

Written out, since `torch.ao.quantization.quantize_dynamic` and the quantised tensors it rests on
are deprecated in torch, and scale a whole batch by its greatest number.

Shapes: R tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

_LARGEST = 127  # of the weights; -128 is left out, so that scales are symmetric
_INPUT_LARGEST = 126.5  # less, since the reciprocal of a scale may be rounded up in bf16
_TINY = 1e-6  # a token of zeros has a scale, too


class Int8Linear(nn.Module):
    """What `nn.Linear` computes, rounded to 8 bits: y = s_x s_w (q_x q_w) + b.

    Under autocast it answers in that type, as `nn.Linear` does.
    """

    weight: Tensor  # (I, O) int8
    scale: Tensor  # (O,)
    bias: Tensor  # (O,)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=_TINY) / _LARGEST  # (O,)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        # Stored as the product reads it: a tenth faster than a transposed view.
        self.register_buffer("weight", rounded.t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach().float())

    def _save_to_state_dict(self, *args: Any) -> NoReturn:
        raise ValueError("an int8 model only predicts; save the model it was made from")

    def forward(self, x: Tensor) -> Tensor:
        """(R, I) -> (R, O)."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        peak = x.abs().amax(1, keepdim=True).float().clamp_(min=_TINY)  # (R, 1)
        inverse = (_INPUT_LARGEST / peak).to(x.dtype)
        product = torch._int_mm((x * inverse).round_().to(torch.int8), self.weight)  # (R, O) int32
        scaled = product.to(x.dtype).mul_(self.scale.to(x.dtype))
        return torch.addcmul(self.bias.to(x.dtype), scaled, inverse.reciprocal_())


def quantise_linears(module: nn.Module) -> None:
    """Replaces every linear layer below a module, in place."""
    for name, part in module.named_children():
        if isinstance(part, nn.Linear):
            setattr(module, name, Int8Linear(part))
        else:
            quantise_linears(part)
