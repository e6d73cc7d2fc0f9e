"""DSS the plain way, straight from the formula: the reference that the library is tested and timed against."""

from __future__ import annotations

import torch

from dasvit.vit import VisionTransformer


def plain_dss(model: VisionTransformer, image_size: int, mode: str = "paper") -> tuple[float, float]:
    """Return diversity and saliency: gradients of all parameters, the nuclear norm of every matrix, parts by name.

    The model is left with absolute parameters.
    """
    model.eval().requires_grad_(True).zero_grad()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if mode == "paper" or name in ("cls_token", "pos_embed"):
                p.abs_()
    image = torch.ones(1, model.in_channels, image_size, image_size, dtype=model.pos_embed.dtype)
    model(image).sum().backward()
    diversity = saliency = 0.0
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        attention = name.startswith("layers.")
        if attention and (name.endswith(".proj.weight") or (name.endswith(".qkv.weight") and mode == "paper")):
            diversity += (torch.linalg.norm(p, "nuc") * torch.linalg.norm(p.grad, "nuc")).item()
        elif name.endswith((".fc1.weight", ".fc2.weight")):
            saliency += float((p.detach() * p.grad).abs().sum())
    return diversity, saliency
