"""A CUDA device made of CPU memory, so that mistakes of placement are found without a GPU.

After `emulate_cuda`, the device "cuda" can be used: its tensors lie in CPU memory and compute
there, but they refuse what a GPU's tensors refuse: to be combined with tensors of the CPU, to be
read by numpy, to be filled by a generator of the CPU. What depends on the hardware (rounding,
kernels, CUDA graphs, random numbers, speed) is not emulated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
_FACTORIES = (
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "zeros"),
    *("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like"),
    *("zeros_like",),
)
_NEW = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_TAKE_INDICES_OF_THE_CPU = {
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default),
    *(aten._unsafe_index.Tensor, aten._index_put_impl_.default),
}


class PlacementError(RuntimeError):
    """What would fail on a GPU."""


class OnCuda(torch.Tensor):
    """A tensor that says that it lies on the GPU; `held` has its values."""

    held: torch.Tensor
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnCuda:
        """Of `held`'s shape, strides and type."""
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
        )

    def __init__(self, held: torch.Tensor):
        self.held = held.detach()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As always, but for what makes tensors that no operation is told of."""
        if func is functional.one_hot:
            return OnCuda(func(args[0].held, *args[1:], **(kwargs or {})))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute with what is held, after a check of where the arguments lie."""
        kwargs = kwargs or {}
        _require_one_device(func, args, kwargs)
        held_args, held_kwargs = pytree.tree_map_only(OnCuda, lambda t: t.held, (args, kwargs))
        out = func(*held_args, **held_kwargs)
        if func is aten.copy_.default and not isinstance(args[0], OnCuda):
            return args[0]
        out = pytree.tree_map_only(torch.Tensor, OnCuda, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """With its device."""
        return f"OnCuda({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> OnCuda:
        """A wrapper has no memory of its own that torch could copy."""
        made = OnCuda(copy.deepcopy(self.held, memo))
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as on a GPU."""
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: .cpu() first")
        return self.held.numpy()

    def __array__(self, dtype: Any = None) -> Any:
        """Refused, as on a GPU."""
        return self.numpy()

    def tolist(self) -> Any:
        """Of any device."""
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Of what is held: tensors that share memory are found by it."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """Of what is held."""
        return self.held.data_ptr()


def _require_one_device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    leaves = pytree.tree_leaves((args, kwargs))
    for leaf in leaves:
        if isinstance(leaf, torch._C.Generator) and _address(leaf) not in _GENERATORS_ON_CUDA:
            raise PlacementError(f"{func}: a generator of the CPU for a tensor on the GPU")
    may_cross = func in (aten.copy_.default, aten._to_copy.default)
    if may_cross or (func in _TAKE_INDICES_OF_THE_CPU and isinstance(args[0], OnCuda)):
        return
    here = [
        leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnCuda)
    ]
    if torch._C._current_autograd_node() is not None:
        # Autograd makes zeros of its own for outputs that nothing used, unseen from here.
        here = [tensor for tensor in here if tensor.any()]
    if any(tensor.ndim for tensor in here):
        shapes = [tuple(tensor.shape) for tensor in here]
        raise PlacementError(f"{func}: tensors of the CPU, of shapes {shapes}, beside the GPU's")


class _ToCuda(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return OnCuda(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.held.clone()


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return OnCuda(grad.clone())


def _moved(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    if device is None or torch.device(device).type == tensor.device.type:
        return tensor
    crossing = _ToCuda if torch.device(device).type == "cuda" else _ToCpu
    return crossing.apply(tensor)


class _Generator(torch.Generator):
    """Says that it is of the device that it was asked for; draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        if made.place.type == "cuda":
            # By address: operations get another Python object for it. Kept, so that no other
            # generator can have the address later.
            _GENERATORS_ON_CUDA[_address(made)] = made
        return made

    device = property(lambda self: self.place)


_GENERATORS_ON_CUDA: dict[int, torch.Generator] = {}


def _address(generator: Any) -> int:
    return generator._cdata


def _placed(make: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes a tensor, with the emulated device among its choices."""

    def made(*args: Any, device: Any = None, requires_grad: bool = False, **settings: Any) -> Any:
        like = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if device is None and like is not None:
            device = like.device
        emulated = device is not None and torch.device(device).type == "cuda"
        generator = settings.get("generator")
        if generator is not None and (generator.device.type == "cuda") != emulated:
            raise PlacementError(f"{make}: a generator on {generator.device} for {device}")
        if emulated:
            out = _moved(make(*args, **settings), CUDA)
        else:
            if isinstance(like, OnCuda):
                args = (like.cpu(), *args[1:])
            out = make(*args, device=device, **settings)
        return out.requires_grad_(requires_grad) if requires_grad else out

    return made


def _to(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`Tensor.to` with the emulated device among its choices."""

    def to(self: torch.Tensor, *args: Any, device: Any = None, **settings: Any) -> torch.Tensor:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor):
            device, settings["dtype"] = first.device, first.dtype
        elif isinstance(first, torch.dtype):
            settings["dtype"] = first
        elif args:
            device = first
            if len(args) > 1 and args[1] is not None:
                settings["dtype"] = args[1]
        emulated = device is not None and torch.device(device).type == "cuda"
        if not emulated and not isinstance(self, OnCuda):
            return real(self, device=device, **settings)
        return _moved(real(self, **settings) if settings else self, device)

    return to


def emulate_cuda(patch: pytest.MonkeyPatch) -> None:
    """Let torch have the emulated device until `patch` is undone."""
    _device_constructors()  # `with torch.device(...)` keeps a list of the functions as they are
    for name in _FACTORIES:
        patch.setattr(torch, name, _placed(getattr(torch, name)))
    for name in _NEW:
        patch.setattr(torch.Tensor, name, _placed(getattr(torch.Tensor, name)), raising=False)
    patch.setattr(torch.Tensor, "to", _to(torch.Tensor.to))
    patch.setattr(torch.Tensor, "cpu", lambda self: self.to("cpu"))
    patch.setattr(torch.Tensor, "cuda", lambda self, *_: self.to("cuda"))
    patch.setattr(torch, "Generator", _Generator)
    autocast = torch.autocast
    patch.setattr(torch, "autocast", lambda device_type, *a, **k: autocast("cpu", *a, **k))
    patch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    for name, value in {
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "emulated",
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }.items():
        patch.setattr(torch.cuda, name, value)
