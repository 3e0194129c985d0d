"""A stock diffusers processor whose softmax-attention calls are pointed at an operator.

The stock processor keeps its projections, norms, rotary embedding and output layers. Its `__call__`
is compiled again from its own source with two changes: `F.scaled_dot_product_attention(...)` and
`dispatch_attention_fn(...)` become methods of the processor, and a first line lets an operator that
was trained with other projections show them in the place of the module's own. The new class is a
subclass of the stock class, so `isinstance` still holds.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import types
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn

from .special import BIASED, MASKED, SPLIT

__all__ = ["Attend", "Project", "Redirected", "redirect", "redirected_class"]

_METHOD_OF_CALL = {
    "scaled_dot_product_attention": "_foveate_sdpa",
    "dispatch_attention_fn": "_foveate_dispatch",
}


class Attend(Protocol):
    """What a redirected call site asks: the attention output, or None for the stock softmax."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor | None: ...


class Project(Protocol):
    """What a redirected call asks first: `attn`, or what stands for it with other projections."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> Any: ...


class Redirected:
    """Mixin of the redirected classes: routes every softmax call site through `attend`."""

    attend: Attend | None = None
    project: Project | None = None
    stock_class: type
    call_sites: int

    def _foveate_project(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> Any:
        if self.project is None:
            return attn
        return self.project(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _foveate_sdpa(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if self.attend is not None:
            special = _special(attn_mask, dropout_p, is_causal, enable_gqa)
            out = _attend(self.attend, query, key, value, scale, special)
            if out is not None:
                return out
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _foveate_dispatch(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        attention_kwargs: dict | None = None,
        *,
        backend: object = None,
        parallel_config: object = None,
    ) -> torch.Tensor:
        if self.attend is not None:
            special = _special(attn_mask, dropout_p, is_causal, enable_gqa)
            if special is None and parallel_config is not None:
                special = SPLIT
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, N, D]
            out = _attend(self.attend, q, k, v, scale, special)
            if out is not None:
                return out.transpose(1, 2)
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale,
            enable_gqa,
            attention_kwargs,
            backend=backend,
            parallel_config=parallel_config,
        )

    def __reduce_ex__(self, protocol: int) -> tuple:
        # the class is made at run time, so pickle and deepcopy rebuild it from the stock class
        return _new_redirected, (self.stock_class,), self.__dict__


def _attend(
    attend: Attend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    special: str | None,
) -> torch.Tensor | None:
    """`attend` under autocast as the stock call is: in reduced precision, in one dtype.

    What an operator computes wider inside stays so.
    """
    device = q.device.type
    # a device without autocast, such as meta, may not be asked whether it is on
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return attend(q, k, v, scale=scale, special=special)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
        return attend(q, k, v, scale=scale, special=special)


def _special(
    attn_mask: torch.Tensor | None, dropout_p: float, is_causal: bool, enable_gqa: bool
) -> str | None:
    """What this call asks beyond plain softmax attention, or None."""
    if is_causal:
        return "the call is causal"
    if dropout_p:
        return "the call asks for dropout"
    if enable_gqa:
        return "the call shares key heads (enable_gqa)"
    if attn_mask is None:
        return None
    return MASKED if attn_mask.dtype == torch.bool else BIASED


class _PointAtSelf(ast.NodeTransformer):
    """Points `F.scaled_dot_product_attention(...)` and `dispatch_attention_fn(...)` at self."""

    count = 0

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = getattr(node.func, "id", getattr(node.func, "attr", None))
        method = _METHOD_OF_CALL.get(name)
        if method is not None:
            self.count += 1
            target = ast.Attribute(ast.Name("self", ast.Load()), method, ast.Load())
            node.func = ast.copy_location(target, node.func)
        return node


def _project_first(definition: ast.FunctionDef) -> None:
    """Begins the function with `attn = self._foveate_project(attn, hidden_states, ...)`."""
    known = {argument.arg for argument in definition.args.args}
    if not {"attn", "hidden_states"} <= known:
        return
    text, mask = (
        name if name in known else "None" for name in ("encoder_hidden_states", "attention_mask")
    )
    call = f"attn = self._foveate_project(attn, hidden_states, {text}, {mask})"
    (statement,) = ast.parse(call).body
    first = definition.body[0]
    for node in ast.walk(statement):
        ast.copy_location(node, first)
    definition.body.insert(0, statement)


def _parse_call(stock_class: type) -> tuple[types.FunctionType, ast.Module]:
    """The function `stock_class.__call__` and its syntax tree, line numbers as in the file."""
    name = stock_class.__name__
    function = stock_class.__call__
    if not isinstance(function, types.FunctionType):
        raise NotImplementedError(
            f"{name}.__call__ is not a Python function, so it cannot be redirected"
        )
    if function.__closure__ or hasattr(function, "__wrapped__"):
        raise NotImplementedError(
            f"{name}.__call__ is wrapped or closes over names, so it cannot be redirected"
        )
    try:
        source = inspect.getsource(function)
    except OSError:
        raise NotImplementedError(
            f"{name} has no source text (frozen build?), so it cannot be redirected"
        ) from None
    # dedenting would change strings of several lines, and fail where one reaches the margin
    is_indented = source[0].isspace()
    tree = ast.parse(f"if True:\n{source}" if is_indented else source)
    if is_indented:
        tree.body = tree.body[0].body
    ast.increment_lineno(tree, function.__code__.co_firstlineno - (2 if is_indented else 1))
    return function, tree


def _strip_annotations(definition: ast.FunctionDef) -> None:
    """Annotations are evaluated at definition time, outside the code object taken below."""
    arguments = definition.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    for argument in (arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    definition.returns = None


def _compile_call(function: types.FunctionType, tree: ast.Module) -> types.FunctionType:
    """The rewritten function, with the file name, globals and defaults of the original."""
    _strip_annotations(tree.body[0])
    ast.fix_missing_locations(tree)
    module = compile(tree, function.__code__.co_filename, "exec", dont_inherit=True)
    # the module is never executed: its one function's code object is taken out of the constants
    code = next(
        c for c in module.co_consts if isinstance(c, types.CodeType) and c.co_name == "__call__"
    )
    call = types.FunctionType(code, function.__globals__, "__call__", function.__defaults__)
    call.__kwdefaults__ = function.__kwdefaults__
    return call


@functools.cache
def redirected_class(stock_class: type) -> type:
    """The subclass of `stock_class` whose softmax call sites go through `attend`.

    Raises NotImplementedError where the stock `__call__` has no such call or cannot be rewritten.
    """
    function, tree = _parse_call(stock_class)
    rewrite = _PointAtSelf()
    rewrite.visit(tree)
    if rewrite.count == 0:
        raise NotImplementedError(
            f"{stock_class.__name__} has no softmax-attention call to redirect"
        )
    _project_first(tree.body[0])
    members = {
        "__call__": _compile_call(function, tree),
        "__module__": __name__,
        "stock_class": stock_class,
        "call_sites": rewrite.count,
    }
    return type(f"Foveate{stock_class.__name__}", (Redirected, stock_class), members)


def redirect(stock: object, attend: Attend, project: Project | None = None) -> Redirected:
    """A redirected copy of the processor `stock`, sharing its weights and settings."""
    # diffusers makes new processors of the class that it finds, which may be ours
    is_ours = isinstance(stock, Redirected)
    new_class = type(stock) if is_ours else redirected_class(type(stock))
    new = copy.copy(stock)
    new.__class__ = new_class
    object.__setattr__(new, "attend", attend)
    object.__setattr__(new, "project", project)
    return new


def _new_redirected(stock_class: type) -> Redirected:
    new_class = redirected_class(stock_class)
    return new_class.__new__(new_class)
