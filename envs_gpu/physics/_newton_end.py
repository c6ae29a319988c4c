"""The last step of Newton's method, for MJX in float32.

MJX 3.17 takes a step of its solver only where the cost falls. The cost is a float32 sum: near the minimum it
no longer falls, while accelerations still have four correct digits only. The gradient is precise enough to go
on: where the line search finds nothing, the whole step of Newton's method is taken if the gradient shrinks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

_corrected: set[str] = set()


def correct_mjx(solver: Any, support: Any) -> None:
    """Give MJX's `solver` this step; before the first function is traced.

    Args:
        solver: the module with the methods.
        support: the one of the same package that multiplies with the mass matrix.
    """
    if solver.__name__ in _corrected:
        return
    _corrected.add(solver.__name__)
    original = solver._linesearch

    @functools.wraps(original)
    def linesearch(model: Any, data: Any, context: Any) -> Any:
        found = original(model, data, context)
        if model.opt.solver != solver.SolverType.NEWTON:
            return found
        whole = context.replace(
            qacc=context.qacc + context.search,
            Ma=context.Ma + support.mul_m(model, data, context.search),
            Jaref=context.Jaref + data._impl.efc_J @ context.search,
        )
        stuck = (found.qacc == context.qacc).all()
        takes = stuck & (_gradient(solver, model, data, whole) < jnp.linalg.norm(context.grad))
        chosen = {
            name: jnp.where(takes, getattr(whole, name), getattr(found, name))
            for name in ("qacc", "Ma", "Jaref")
        }
        return found.replace(**chosen)

    solver._linesearch = linesearch


def _gradient(solver: Any, model: Any, data: Any, context: Any) -> jax.Array:
    """`[]` size of the cost's gradient at the accelerations of `context`."""
    force = solver._update_constraint(model, data, context).qfrc_constraint
    return jnp.linalg.norm(context.Ma - data.qfrc_smooth - force)
