"""Tensor annotations are checked in the tests: `Float[Tensor, "n chunk action"]` and its kind.

`install` (called by conftest.py before anything of ours is imported) wraps each function, method
and dataclass of the four packages that has such an annotation. Each call then checks dtypes, number
of axes, and that one name has one size among its arguments and its result. Functions without them
cost nothing, and nothing is checked outside the tests.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping

PACKAGES = ("vla", "sim", "policies", "scripts")
_KINDS = [name for name, kind in vars(jaxtyping).items() if hasattr(kind, "dtypes")]
_ANNOTATION = re.compile(rf"\b({'|'.join(_KINDS)})\[")


def install() -> None:
    """Check every module of ours that is imported from now on.

    Raises:
        RuntimeError: one of them was imported already, so that its names would stay unchecked.
    """
    if early := sorted(set(PACKAGES) & {name.partition(".")[0] for name in sys.modules}):
        raise RuntimeError(f"imported before the shapes could be checked: {early}")
    sys.meta_path.insert(0, _Finder())


def check_shapes(module: ModuleType) -> None:
    """Wrap what the module defines and annotates with shapes, in place."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    for owner in (module, *(c for c in classes if c.__module__ == module.__name__)):
        for name, member in list(vars(owner).items()):
            if _is_annotated(member) and _function(member).__module__ == module.__name__:
                setattr(owner, name, _checked(member))


def _function(member: object) -> Any:
    """What a method's wrapper wraps."""
    return getattr(member, "__func__", getattr(member, "fget", member))


def _is_annotated(member: object) -> bool:
    function = _function(member)
    if not isinstance(function, FunctionType):
        return False
    return any(_ANNOTATION.search(str(kind)) for kind in function.__annotations__.values())


def _checked(member: Any) -> Any:
    if isinstance(member, classmethod | staticmethod):
        return type(member)(_checked(member.__func__))
    if isinstance(member, property):
        return property(_checked(member.fget), member.fset, member.fdel)
    return _check(member)


def _check(function: FunctionType) -> Callable[..., Any]:
    from beartype import beartype
    from torch import compiler

    # The other annotations are pyright's work; some exist for it alone (TYPE_CHECKING).
    written = function.__annotations__
    function.__annotations__ = {n: k for n, k in written.items() if _ANNOTATION.search(str(k))}
    shaped = jaxtyping.jaxtyped(function, typechecker=beartype)
    function.__annotations__ = written

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # A compiler traces the plain function: the checks are not part of the graph.
        return (function if compiler.is_compiling() else shaped)(*args, **kwargs)

    return call


class _Loader(SourceFileLoader):
    """Loads as ever, then wraps."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_shapes(module)


class _Finder(MetaPathFinder):
    """Finds modules of ours as ever, and gives them that loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec, or None for what is not ours."""
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
