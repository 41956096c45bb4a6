"""The JAX side of `peers.py`: equilibrium and gradient by eqjax, by Optimistix and by JAXopt."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx

from eqjax.analytic import cross_entropy
from eqjax.fields import trainable
from eqjax.gradients import AsymEP, Nudge, OracleAdjoint, SharedAdjoint
from eqjax.relaxation import GMRES, Anderson, equilibrium

# eqjax


def eqjax_forward(model, batch, tolerance):
    def one(tokens):
        x = model.encode(tokens)
        solver = Anderson(rtol=tolerance)
        found = equilibrium(model.field, model.initial(x), x, solver=solver, throw=False)
        return found.value, found.stats["field_evaluations"]

    return jax.vmap(one)(batch[0])


def eqjax_gradient(name, model, batch, tolerance, adjoint):
    free = Anderson(rtol=tolerance)
    if name == "eqjax AsymEP":
        nudged = Anderson(rtol=adjoint)
        estimator = AsymEP(free=free, nudged=Nudge(nudged, contrast=SharedAdjoint()))
    else:
        estimator = OracleAdjoint(free=free, adjoint_solver=GMRES(rtol=adjoint))
    return estimator(model, cross_entropy, batch)


# Peers


def tallied(product, note):
    """`product`, calling `note` each time, once for every sample."""
    if note is None:
        return product

    def noted(v):
        jax.debug.callback(note)
        return product(v)

    return noted


class Tallied(lx.AbstractLinearSolver):
    """Lineax's GMRES with its products tallied."""

    solver: lx.GMRES
    note: Callable | None = eqx.field(static=True)

    def init(self, operator, options):
        return self.solver.init(operator, options)

    def compute(self, state, vector, options):
        product = tallied(state.mv, self.note)
        operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: vector))
        return self.solver.compute(operator, vector, options)

    def transpose(self, state, options):
        return self.solver.transpose(state, options)

    def conj(self, state, options):
        return self.solver.conj(state, options)

    def assume_full_rank(self):
        return True


class Optimistix(eqx.Module):
    """`optimistix.FixedPointIteration` on `z + step · F(z)`, with GMRES in its implicit adjoint.

    `tol`, `adjoint`: root mean square of the last step, and of the adjoint's residual, at which they stop.
    """

    step: Any
    tol: Any
    adjoint: Any
    restart: int = eqx.field(static=True, default=5)  # 10 and 20 need as many products or more
    note: Callable | None = eqx.field(static=True, default=None)

    steps = (0.1, 0.2, 0.35, 0.5, 0.65)
    variants = ({},)
    traced = True

    def __str__(self):
        return f"step {self.step:g}, GMRES({self.restart})"

    @staticmethod
    def units(bench):
        """What a force residual of 1, and a relative adjoint residual of 1, are in its own measures."""
        root = bench.z[0].size ** 0.5
        return bench.size / root, bench.pull / root

    def solve(self, field, x, implicit):
        solver = optx.FixedPointIteration(rtol=0.0, atol=self.tol, norm=optx.rms_norm)
        gmres = lx.GMRES(0.0, self.adjoint, norm=optx.rms_norm, restart=self.restart)
        found = optx.fixed_point(
            lambda z, args: z + args[2] * args[0](0.0, z, args[1]),
            solver,
            x,
            (field, x, self.step),
            adjoint=optx.ImplicitAdjoint(Tallied(gmres, self.note)),
            max_steps=512,
            throw=False,
        )
        return found.value, found.stats["num_steps"]


class JAXopt(eqx.Module):
    """`jaxopt.AndersonAcceleration` on `z + step · F(z)`, with its GMRES in the implicit adjoint.

    `tol`: norm of the last step; `adjoint`: relative. Both must be known when the gradient is compiled.
    """

    step: Any
    tol: Any
    adjoint: Any
    restart: int = eqx.field(static=True, default=5)
    note: Callable | None = eqx.field(static=True, default=None)
    ridge: Any = 1e-5

    steps = (0.35, 0.5, 0.65)
    variants = ({"ridge": 1e-5}, {"ridge": 1e-8})
    traced = False

    def __str__(self):
        return f"step {self.step:g}, ridge {self.ridge:.0e}, GMRES({self.restart})"

    @staticmethod
    def units(bench):
        return bench.size, 1.0

    def solve(self, field, x, implicit):
        import jaxopt
        from jaxopt.linear_solve import solve_gmres

        def gmres(product, b, **_):
            product = tallied(product, self.note)
            return solve_gmres(product, b, tol=self.adjoint, restart=self.restart)

        solver = jaxopt.AndersonAcceleration(
            lambda z, field, x: z + self.step * field(0.0, z, x),
            history_size=6,
            maxiter=256,
            tol=self.tol,
            ridge=self.ridge,
            implicit_diff=implicit,
            unroll=False,
            implicit_diff_solve=gmres,
        )
        found = solver.run(x, field, x)
        return found.params, found.state.num_fun_eval


def peer_forward(model, batch, peer, implicit=False):
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda u: peer.solve(model.field, model.encode(u), implicit))(batch[0])


def peer_gradient(model, batch, peer):
    trained, held = eqx.partition(model, trainable(model))

    def objective(trained):
        model = eqx.combine(trained, held)
        z, steps = peer_forward(model, batch, peer, implicit=True)
        losses = jax.vmap(cross_entropy)(jax.vmap(model.decode)(z), batch[1])
        return jnp.mean(losses), (z, steps)

    with jax.default_matmul_precision("highest"):
        grads, out = jax.grad(objective, has_aux=True)(trained)
    return grads, *out
