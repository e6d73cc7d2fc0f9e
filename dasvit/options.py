"""What each command of the command line can be told, beside the settings of what it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .engine.flags import BY_PLACE

MODULES = "DASVIT_OPERATIONS"
"""The environment variable that names modules with operations of a user's own; a command imports them first."""


@dataclass(frozen=True)
class Search:
    """Search an encoder by progressive differentiable architecture search."""

    out: Path
    """The run directory: settings, metrics, genotype, checkpoints."""
    preset: str | None = None
    """tiny, small or paper; without it tiny for digits, else small. The other flags change its settings."""
    method: str = "dasvit"
    """dasvit, or another of the family: dasvit-all-tokens, dasvit-unfair, dasvit-one-stage, darts (one stage, every
    token, no fairness term), darts-2, darts+, darts-minus, p-darts, pc-darts, fair-darts, beta-darts, drnas, tangle,
    one-shot. Other flags go before its own values; of --stages one stage has the last depth and all epochs."""
    resume: bool = False
    """Continue the run in --out; its settings need not be repeated. Where nothing began yet, begin."""
    logger: Literal["csv", "tensorboard"] | None = None
    """Log the rows of metrics.jsonl also as a table, or for TensorBoard, in a folder of this name in --out."""


@dataclass(frozen=True)
class Retrain:
    """Train a network from scratch and evaluate it on the test images."""

    out: Path
    """The run directory: settings, metrics, genotype, checkpoints."""
    preset: str | None = None
    """tiny, small or paper; without it tiny for digits, else small. The other flags change its settings."""
    resume: bool = False
    """Continue the run in --out; its settings need not be repeated. Where nothing began yet, begin."""
    logger: Literal["csv", "tensorboard"] | None = None
    """Log the rows of metrics.jsonl also as a table, or for TensorBoard, in a folder of this name in --out."""


@dataclass(frozen=True)
class Complexity:
    """Count parameters and multiply-accumulates of a network for one image."""

    genotype: str = field(metadata=BY_PLACE)
    """A genotype file, or the name of a published encoder or of the baseline, vit_b16."""
    image_size: int = 224
    """Side of the image in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    in_channels: int = 3
    """Channels of the image."""
    dim: int = 768
    """Width of a token."""
    depth: int = 12
    """Number of encoder layers."""
    num_classes: int = 10
    """Number of classes."""
    convention: str = "A"
    """A: every matrix product; B: linear and convolution only; C: as A without the attention projections."""
    json: bool = False
    """Print JSON, with the share of every module."""


@dataclass(frozen=True)
class Table1:
    """Count every row of the paper's Table I with 10, 100 and 1000 classes, under three conventions."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Score:
    """Score an untrained network; higher is better. The number of parameters is told beside every score."""

    network: str = field(metadata=BY_PLACE)
    """vit_b16, a published encoder's name, a genotype file, or SPACE:NUMBER, e.g. autoformer-t:4711."""
    indicator: tuple[str, ...] = ("dss",)
    """dss, dss-released, synflow, snip, grasp, naswot, te, zico, meco, az-nas, autoprox, params, macs."""
    image_size: int = 224
    """Side of the image in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    in_channels: int = 3
    """Channels of the image."""
    num_classes: int = 1000
    """Number of classes."""
    dim: int = 768
    """Width of a token; a network of a space has its own."""
    depth: int = 12
    """Number of encoder layers; a network of a space has its own."""
    seed: int = 0
    """Seed of the weights and of the images."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class TfSearch:
    """Score random networks of a space without training them, and rank them."""

    out: Path
    """The run directory: settings, metrics.jsonl (a network a line), scores.svg (score against size), best.json."""
    jobs: int = 1
    """Processes; -1 takes all processors."""
    resume: bool = False
    """Continue the run in --out; its settings need not be repeated. Where nothing began yet, begin."""


@dataclass(frozen=True)
class Landscape:
    """Train random encoders of a space by one recipe, to know the space."""

    out: Path
    """The run directory: settings, metrics.jsonl (a training a line), landscape.safetensors."""
    jobs: int = 1
    """Processes of one thread; -1 takes all processors."""
    bank: int = 1
    """Encoders of one wiring trained at once; for a GPU, with --every, whose banks of 49 are all alike."""
    resume: bool = False
    """Continue the run in --out; its settings need not be repeated. Where nothing began yet, begin."""


@dataclass(frozen=True)
class Plan:
    """Tell what each stage of a search needs: bytes of live tensors, counted, and seconds a step, measured here.

    Which operations survive is not known before: "even" takes kinds in turn, "at most" those with the most weights.
    """

    preset: str | None = None
    """tiny, small or paper; without it tiny for digits, else small. The other flags change its settings."""
    gpu_mem: str | None = None
    """Memory that it has to fit in, e.g. 24G; leave room for what the allocator and other programs take."""
    batch: int | None = None
    """The same as --batch-size."""
    num_classes: int = 10
    """Number of classes."""
    in_channels: int = 3
    """Channels of an image."""
    memory_only: bool = False
    """Do not measure how long a step takes."""
    json: bool = False
    """Print JSON."""
