"""Shared by every operator file: argument checks, the native call, and registration with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from .. import _native
from ..errors import ArgumentError, ArgumentTypeError, DerivativeError, GraphIndexError, NativeError
from ..indices import check_range

FLOATING = (torch.float32, torch.bfloat16, torch.float64)
INTEGER = (torch.int32, torch.int64)
_PLAIN = (Tensor, torch.nn.Parameter)

# What autocast does to the floating arguments: float32 for choices and statistics; the autocast dtype, as in
# torch.nn.functional.linear; or the dtype of the rows, the first argument.
Casts = Literal["float32", "product", "rows"]


def native() -> bool:
    """Return whether to call the compiled operators, which are loaded and have no forward-mode derivatives."""
    return _native.available and forward_ad._current_level < 0


def call(name: str, *args: Any, public: str | None = None) -> Any:
    """Call ``torch.ops.gmoe.<name>``, and turn its report of a bad index into a :class:`GraphIndexError`.

    On CUDA an operator only records a bad index, and a later call on that device raises. ``public`` is the name to
    report where a function runs on another's operator.
    """
    op = getattr(torch.ops.gmoe, name)
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return op(*args)
    except RuntimeError as error:
        if isinstance(error, NotImplementedError):
            _native.expect_cuda(name, args)
        bad_index = GraphIndexError.of_native(error)
        if bad_index is None:
            raise
        if public is not None:
            bad_index = GraphIndexError(str(bad_index).replace(f"gmoe::{name}", f"gmoe::{public}", 1))
        raise bad_index from None


def checks_inside(*operands: Tensor | None) -> bool:
    """Return whether the native operator checks its operands, so that the Python checks can be skipped.

    On CPU it checks all of them. The Python checks take longer than a small product and are then run only to word the
    error. Fake tensors and traces never reach the native checks.
    """
    if not native() or torch.compiler.is_compiling():
        return False
    for operand in operands:
        if operand is not None and (not operand.is_cpu or type(operand) not in _PLAIN):
            return False
    return True


def allows_tf32(x: Tensor) -> bool:
    """Return whether products of these rows may use TF32: on CUDA, as torch's switch for matrix products says."""
    return x.is_cuda and _tf32_switch()


def _tf32_switch() -> bool:
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


# torch.compile cannot trace the switch, but recompiles when it changes. This line is all that
# torch.compiler.assume_constant_result does, without its import of the compiler, which takes a second.
_tf32_switch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def expect(ok: bool, op: str, argument: str, expected: str | Callable[[], str], got: object) -> None:
    """Raise ``ValueError`` in the project's wording unless ``ok``.

    Pass a text that names sizes as a function: building it at every call would cost time and would tie a compiled
    function to the sizes it was traced with.
    """
    if not ok:
        text = expected if isinstance(expected, str) else expected()
        raise ArgumentError(f"gmoe::{op}: expected '{argument}' {text}, got {got}")


def expect_dim(op: str, argument: str, value: Tensor, dim: int, names: str) -> None:
    """Check the number of dimensions; ``names`` is the expected shape as text, such as ``[N, D]``."""
    if value.dim() != dim:
        raise ArgumentError(f"gmoe::{op}: expected '{argument}' of shape {names}, got {list(value.shape)}")


def expect_shape(op: str, argument: str, value: Tensor | None, shape: Sequence[int | str], match: str) -> None:
    """Check a shape of sizes, or names such as ``"D"`` for any size; ``match`` says where the sizes come from."""
    if value is None:
        return
    fits = value.dim() == len(shape)
    for want, got in zip(shape, value.shape, strict=False):
        fits = fits and (isinstance(want, str) or got == want)
    if not fits:
        expected = ", ".join(map(str, shape))
        raise ArgumentError(f"gmoe::{op}: expected '{argument}' of shape [{expected}] {match}, got {list(value.shape)}")


def expect_dtype(op: str, argument: str, value: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Check the dtype; raise ``TypeError`` otherwise."""
    if value.dtype not in allowed and not (allowed is FLOATING and _autocast_half(value)):
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        got = str(value.dtype).removeprefix("torch.")
        raise ArgumentTypeError(f"gmoe::{op}: expected '{argument}' of dtype {names}, got {got}")


def _autocast_half(value: Tensor) -> bool:
    # What autocast has made, it also casts back.
    return value.dtype == torch.float16 and torch.is_autocast_enabled(value.device.type)


def expect_device(op: str, argument: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors are on one device."""
    expect(
        value.device == other.device, op, argument, f"on the device of '{other_name}' ({other.device})", value.device
    )


def expect_floating(op: str, argument: str, value: Tensor, **others: Tensor | None) -> None:
    """Check that a tensor is floating, and that others share its device and, outside autocast, its dtype.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a device differs.
    """
    expect_dtype(op, argument, value, FLOATING)
    for name, other in others.items():
        if other is None:
            continue
        if other.dtype != value.dtype and not (
            other.is_floating_point() and torch.is_autocast_enabled(value.device.type)
        ):
            raise ArgumentTypeError(
                f"gmoe::{op}: expected '{name}' to have the dtype of '{argument}' ({value.dtype}), got {other.dtype}"
            )
        expect_device(op, name, other, argument, value)


def expect_index(op: str, argument: str, value: Tensor, bound: int) -> None:
    """Check ``0 <= value < bound`` for the reference; the native operators check for themselves."""
    check_range(f"gmoe::{op}", argument, value, bound)


def wide(x: Tensor) -> torch.dtype:
    """Return the dtype in which sums over x are accumulated."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def register(
    name: str,
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    autocast: Casts | None = None,
) -> None:
    """Register a native operator's fake version, gradient and casts under autocast with torch.

    Does nothing without the compiled library. An operator without ``backward`` refuses to be differentiated.
    """
    if not _native.available:
        return
    qualified = f"gmoe::{name}"
    if not hasattr(torch.ops.gmoe, name):
        raise NativeError(
            f"gmoe_ext: the compiled operators are older than the Python files: {qualified} is missing\n"
            "  fix: build them again (in the source tree: python setup.py build_ext --inplace)"
        )
    torch.library.register_fake(qualified, fake)
    op = getattr(torch.ops.gmoe, name).default
    _registry.impl(qualified, _autograd_kernel(op, backward, setup_context), "Autograd", with_keyset=True)
    if autocast is not None:
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _registry.impl(qualified, _autocast_kernel(op, autocast, device, key), key)


_registry: Any = torch.library.Library("gmoe", "IMPL")  # type: ignore[no-untyped-call]


def _autograd_kernel(op: Any, backward: Callable[..., Any] | None, setup: Callable[..., Any] | None) -> Any:
    """Do what torch.library.register_autograd does, and beyond that serve torch.func and refuse forward mode."""
    name = op._schema.name
    defaults = [argument.default_value for argument in op._schema.arguments]

    def forward(ctx: Any, *inputs: Any) -> Any:
        *args, keyset = inputs
        # Outer transforms of torch.func record below here, which a Function switches off.
        recording = torch.enable_grad() if torch._C._are_functorch_transforms_active() else nullcontext()
        with recording, torch._C._AutoDispatchBelowAutograd():
            output = op.redispatch(keyset, *args)
        if setup is not None:
            setup(ctx, tuple(args), output)
        return output

    def differentiate(ctx: Any, *grads: Any) -> Any:
        if backward is None:
            raise DerivativeError(
                f"{name} has no derivative: it is either not differentiable or a gradient already, and second "
                "derivatives are not implemented; fix: call without create_graph, or use gmoe_ext.reference"
            )
        return *backward(ctx, *grads), None  # for the keyset

    members = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    function: Any = type(name.replace("::", "_"), (torch.autograd.Function,), members)

    def kernel(keyset: Any, *args: Any) -> Any:
        below = keyset & torch._C._after_autograd_keyset
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(below, *args)
        args = (*args, *defaults[len(args) :])  # the dispatcher drops arguments that equal their default
        if not torch._C._are_functorch_transforms_active():
            return function.apply(*args, below)
        # A transform of torch.func that has come down to this kernel left one level to record, as for a kernel in C++.
        with enable_single_level_autograd_function():
            return super(torch.autograd.Function, function).apply(*args, below)

    return kernel


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    for arg in args:
        if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:  # type: ignore[no-untyped-call]
            raise DerivativeError(
                f"{name} has no forward-mode derivative; fix: call the function in gmoe_ext.ops, which computes it by "
                "gmoe_ext.reference"
            )


def _autocast_kernel(op: Any, casts: Casts, device: str, key: str) -> Any:
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(arg: Any, dtype: torch.dtype) -> Any:
        floating = isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
        return arg.to(dtype) if floating and arg.device.type == device else arg

    def kernel(*args: Any) -> Any:
        dtype, half = torch.float32, False
        if casts == "product":
            dtype = torch.get_autocast_dtype(device)
            half = dtype == torch.float16
        elif casts == "rows":
            half = args[0].dtype == torch.float16
        # The kernels have no float16: they compute in float32, and the result is rounded once.
        if half:
            dtype = torch.float32
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            if casts == "rows" and not half:
                return op(*args)
            result = op(*(cast(arg, dtype) for arg in args))
        return result.to(torch.float16) if half else result

    return kernel
