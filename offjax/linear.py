"""A linear function with its own transpose, for derivative rules that work in forward and in reverse mode.

The tangent of a ``jax.custom_jvp`` rule is ``linear(fun, transpose, residuals, tangents)``: forward mode runs
``fun``, reverse mode ``transpose``. ``jax.vmap`` maps both. Differentiating once more in the residuals raises
DifferentiationError.
"""

from __future__ import annotations

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from offjax.errors import DifferentiationError

_linear = Primitive("offjax_linear")
_linear.multiple_results = True


def linear(fun, transpose, residuals, tangents):
    """fun(residuals, tangents), linear in ``tangents``; ``transpose(residuals, cotangents)`` gives those of
    ``tangents``.

    Both take and return pytrees of inexact arrays (``residuals`` may hold integers).
    """
    flat_residuals, residual_tree = jax.tree.flatten(residuals)
    flat_tangents, tangent_tree = jax.tree.flatten(tangents)
    out_tree = jax.tree.structure(jax.eval_shape(fun, residuals, tangents))

    def flat_fun(res, lin):
        return jax.tree.leaves(fun(residual_tree.unflatten(res), tangent_tree.unflatten(lin)))

    def flat_transpose(res, ct):
        return jax.tree.leaves(transpose(residual_tree.unflatten(res), out_tree.unflatten(ct)))

    out = _linear.bind(*flat_residuals, *flat_tangents, fun=flat_fun, transpose=flat_transpose, n=len(flat_residuals))
    return out_tree.unflatten(out)


@_linear.def_impl
def _run(*args, fun, transpose, n):
    return fun(list(args[:n]), list(args[n:]))


@_linear.def_abstract_eval
def _abstract(*args, fun, transpose, n):
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    return [jax.core.ShapedArray(s.shape, s.dtype) for s in jax.eval_shape(fun, shapes[:n], shapes[n:])]


def _jvp(primals, tangents, *, fun, transpose, n):
    if any(type(t) is not ad.Zero for t in tangents[:n]):
        raise DifferentiationError(
            "a SystemBatch can be differentiated once, in forward or reverse mode; for second derivatives use "
            "batch.plain(conformers) or the energies of single Systems, system.to_jax()"
        )
    out = _linear.bind(*primals, fun=fun, transpose=transpose, n=n)
    if all(type(t) is ad.Zero for t in tangents):
        return out, [ad.Zero.from_primal_value(o) for o in out]
    dense = [ad.instantiate_zeros(t) for t in tangents[n:]]
    return out, _linear.bind(*primals[:n], *dense, fun=fun, transpose=transpose, n=n)


def _transposed(cotangents, *args, fun, transpose, n):
    residuals = args[:n]
    dense = [ad.instantiate_zeros(c) for c in cotangents]
    return [None] * n + list(_linear.bind(*residuals, *dense, fun=transpose, transpose=fun, n=n))


def _batched(args, dims, *, fun, transpose, n):
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    residual_axes = list(dims[:n])  # None: not mapped
    tangents = [
        jax.numpy.broadcast_to(a, (size, *a.shape)) if d is None else jax.numpy.moveaxis(a, d, 0)
        for a, d in zip(args[n:], dims[n:], strict=True)
    ]
    mapped = [jax.vmap(f, in_axes=(residual_axes, 0)) for f in (fun, transpose)]
    out = _linear.bind(*args[:n], *tangents, fun=mapped[0], transpose=mapped[1], n=n)
    return out, [0] * len(out)


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transposed
batching.primitive_batchers[_linear] = _batched
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
