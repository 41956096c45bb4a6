"""Step-size control on fields with a known best step: what each controller spends until the force is 1e-6.

`python benchmarks/step_control.py`: the rotating field J = [[a, -b], [b, a]], a = -1, b/|a| = 1, 3, 10, 100; a smooth
symmetric field; a non-normal one whose force first grows. Euler at the best fixed step and at three times that,
Euler under `OvershootController`, and Heun and Tsit5 under `diffrax.PIDController`, which need an error estimate.
"""

import diffrax
import jax
import jax.numpy as jnp
from common import arguments, device, table

from eqjax.relaxation import (
    Anderson,
    Fallback,
    OvershootController,
    Picard,
    TimeStepping,
    equilibrium,
)

RTOL, STEPS = 1e-6, 20_000


def fields():
    """Name, Jacobian and the best fixed Euler step (None: the largest that is allowed)."""
    for ratio in (1.0, 3.0, 10.0, 100.0):
        spin = jnp.array([[-1.0, -ratio], [ratio, -1.0]])
        yield f"rotating, b/a = {ratio:g}", spin, 1 / (1 + ratio**2)
    yield "symmetric, -1 … -0.2", -jnp.diag(jnp.linspace(0.2, 1.0, 8)), 1.0
    yield "non-normal", jnp.array([[-1.0, 20.0], [0.0, -0.5]]), 1.0


def solvers(best):
    control = OvershootController()
    pid = diffrax.PIDController(rtol=1e-3, atol=1e-6)
    tight = diffrax.PIDController(rtol=1e-6, atol=1e-9)
    heun, tsit5 = diffrax.Heun(), diffrax.Tsit5()
    euler = TimeStepping(RTOL, controller=control)
    yield f"Euler, best fixed ε = {best:.3g}", Picard(RTOL, step_size=best)
    yield f"Euler, fixed ε = {3 * best:.3g}", Picard(RTOL, step_size=3 * best)
    yield "Euler, overshoot control", euler
    yield "Tsit5, overshoot control", TimeStepping(RTOL, solver=tsit5, controller=control)
    yield "Heun, PID rtol 1e-3", TimeStepping(RTOL, solver=heun, controller=pid)
    yield "Heun, PID rtol 1e-6", TimeStepping(RTOL, solver=heun, controller=tight)
    yield "Tsit5, PID rtol 1e-3", TimeStepping(RTOL, solver=tsit5, controller=pid)
    yield "Tsit5, PID rtol 1e-6", TimeStepping(RTOL, solver=tsit5, controller=tight)
    yield "overshoot control, then Anderson", Fallback(euler, Anderson(RTOL), first_steps=STEPS)


def main():
    options = arguments(__doc__).parse_args()
    jax.config.update("jax_enable_x64", True)
    steps = STEPS // 10 if options.quick else STEPS
    for name, jacobian, best in fields():
        x = jnp.arange(1.0, len(jacobian) + 1)
        reference, rows = None, []
        for solver_name, solver in solvers(best):
            found = equilibrium(
                lambda t, z, x, jacobian=jacobian: jacobian @ z + x,
                jnp.zeros_like(x),
                x,
                solver=solver,
                max_steps=steps,
                throw=False,
            )
            evaluations = int(found.stats["field_evaluations"])
            settled = bool(found.residual <= 1.001 * RTOL)
            if not rows:
                reference = evaluations if settled else None
            words = str(found.result).partition("<")[2].rstrip(">").partition(".")[0]
            rows.append(
                (
                    solver_name,
                    int(found.stats["num_steps"]),
                    evaluations,
                    f"{evaluations / reference:.2f}" if settled and reference else "-",
                    f"{found.residual:.1e}",
                    "settled" if settled else words,
                )
            )
        header = (
            "solver",
            "steps",
            "evaluations",
            "against the best ε",
            "force residual",
            "result",
        )
        table(f"{name}, to {RTOL:g}, float64, {device()}", header, rows, options.out)


if __name__ == "__main__":
    main()
