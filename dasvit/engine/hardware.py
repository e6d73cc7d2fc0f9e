"""Where and how exactly to compute: device, precision (ledger A39), processes; and what it took."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .capture import Recorder, make_recorder


@dataclass(frozen=True)
class Hardware:
    """Where and how exactly to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes a GPU if there is one."""
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    """auto: bf16-mixed on a GPU that has it, else 32-true."""
    devices: int = 1
    """Processes, each on a device of its own, that divide every batch; torchrun and SLURM may start them."""
    compile: bool = False
    """Compile the network first: minutes a stage, for steps that start fewer kernels."""
    capture: Literal["auto", "on", "off"] = "auto"
    """Record the steps of a search as CUDA graphs, which start as a whole; auto: where it is possible."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"devices {self.devices} is below one")
        if self.capture == "on" and self.devices > 1:
            raise ValueError(f"capture on with {self.devices} devices: steps are recorded on one, use --capture auto")


def make_fabric(hardware: Hardware) -> Fabric:
    """Return a Fabric on the device and with the precision asked for.

    Raises:
        ValueError: If there is no such device here, or it cannot do what is asked for.
    """
    cuda = torch.cuda.is_available()
    if (hardware.device == "cuda" and not cuda) or (hardware.device == "mps" and not torch.mps.is_available()):
        raise ValueError(f"device {hardware.device} is not available here: use --device auto or cpu")
    on_gpu = cuda and hardware.device in ("auto", "cuda")
    precision = hardware.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    if on_gpu and hardware.devices > torch.cuda.device_count():
        raise ValueError(f"devices {hardware.devices}: this machine has {torch.cuda.device_count()}")
    fabric = Fabric(accelerator=hardware.device, devices=hardware.devices, precision=precision)
    if hardware.capture == "on" and make_recorder(fabric.device) is None:
        raise ValueError(f"capture on: nothing can be recorded on a {fabric.device.type}, use --capture auto or off")
    return fabric


def recorder_of(hardware: Hardware, fabric: Fabric) -> Recorder | None:
    """Return what the steps of a network on one device are to be recorded with, if they are."""
    return None if hardware.capture == "off" or hardware.devices > 1 else make_recorder(fabric.device)


def place(module: nn.Module, fabric: Fabric) -> None:
    """Bring a module to the precision and the device of ``fabric``; averaging gradients is left to the caller."""
    module = fabric.strategy.precision.convert_module(module)
    if any(p.device != fabric.device for p in module.parameters()):  # tensors without values can only stay
        fabric.to_device(module)


def compile_network(network: nn.Module) -> None:
    """Compile a network whose batches all have one shape; twice, if parts of it are :func:`~dasvit.bilevel.frozen`."""
    # torch 2.11 compares the modules' dicts alone, which hold the same parameters before and after they are frozen: the
    # graph of the step of α would serve the step of the weights, which would get no gradient
    torch._dynamo.config.skip_tensor_guards_with_matching_dict_tags = False
    network.compile(dynamic=False)


def average(x: Tensor, fabric: Fabric) -> Tensor:
    """Return the mean over all devices; with one device ``x`` itself."""
    return cast(Tensor, fabric.all_reduce(x, reduce_op="mean"))


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on whatever device."""
    told = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "overflowed")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in told))


def peak_bytes() -> int:
    """Return the peak memory: allocated on the GPU by this job, or without one resident in this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
