"""`classify`: why a relaxation does not settle."""

import equinox as eqx

from ._bifurcation import NOTHING, SpecialPoint
from ._continuation import Branch


class Classification(eqx.Module):
    """What `classify` returns: `outcome` in a word, the `point` of the branch responsible (or None), and how many
    modes are unstable under the flow and under Euler (None without a step) where the question was asked."""

    outcome: str = eqx.field(static=True)
    point: SpecialPoint | None
    unstable: int = eqx.field(static=True)
    unstable_euler: int | None = eqx.field(static=True)

    def __str__(self) -> str:
        if self.point is None:
            return f"{self.outcome}: the fixed point stays locally stable"
        text = (
            f"{self.outcome} at parameter {self.point.parameter:.12g}, μ = {self.point.value:.6g}"
        )
        text += f", frequency {self.point.frequency:.6g}" if self.point.frequency else ""
        return text + ("" if self.point.token is None else f", of token {self.point.token}")


def classify(branch: Branch, at: float | None = None) -> Classification:
    """Say how the relaxation came to leave a fixed point that was followed from where it is stable.

    | what crosses first | outcome |
    |---|---|
    | a complex pair, Re μ → 0 | "Hopf" |
    | a complex pair, \\|1 + εμ\\| → 1 while Re μ < 0 | "step artefact" |
    | a real μ → 0 (λ → +1) | "fold" if the branch turns there, else "branch point" |
    | a real λ → -1 | "flip" |
    | nothing | "global or basin": the fixed point holds; look for another attractor |

    **Arguments:**

    - `branch`: from `continuation`, with the `step` of the relaxation in question, or without one for the flow.
    - `at`: the parameter where the relaxation was seen not to settle. If the flow itself is unstable there, it answers
      for it, whatever Euler lost before; only where the flow is stable is Euler to blame. A value that the branch,
      having turned in a fold, does not reach has no fixed point: "fold". By default, the first loss of all.

    **Returns:** a `Classification`. **Raises:** `ValueError` if the branch does not begin stable, or never comes near `at`.

    ```python
    assert ej.stability.classify(branch).outcome == "step artefact"  # Euler with ε = 1 is lost first
    assert ej.stability.classify(branch, at=0.9).outcome == "Hopf"
    ```
    """
    euler = branch.unstable_euler
    flow_lost, euler_lost = int(branch.unstable[0]), 0 if euler is None else int(euler[0])
    if flow_lost or euler_lost:
        who = "the flow" if flow_lost else "the Euler map"
        raise ValueError(
            f"`branch` begins where {who} is unstable already: begin it at a parameter where the relaxation settles."
        )
    fold = next((point for point in branch.special_points if point.type == "fold"), None)
    points, reached = branch.special_points, True
    if at is not None:
        # The first pair of neighbouring points between which the parameter is `at`.
        p = branch.parameters
        inside = ((p[:-1] <= at) & (at <= p[1:])) | ((p[1:] <= at) & (at <= p[:-1]))
        reached = bool(inside.any())
        if not reached and fold is None:
            low, high = float(p.min()), float(p.max())
            raise ValueError(
                f"`at` is {at}, but the branch runs from {low:.6g} to {high:.6g}, and not because it folds: continue it "
                "further."
            )
        if reached:
            segment = int(inside.argmax())
            start = float(p[segment])
            # Those before the branch first comes there.
            points = [
                point
                for point in points
                if point.index < segment
                or (point.index == segment and abs(point.parameter - start) <= abs(at - start))
            ]
    blamed = blamed_euler = None
    for point in points:
        if flow_lost == 0 and point.flow != NOTHING:
            blamed = point
        if euler_lost == 0 and point.euler != NOTHING:
            blamed_euler = point
        flow_lost, euler_lost = flow_lost + point.change, euler_lost + point.change_euler
        if at is None and (flow_lost > 0 or euler_lost > 0 or point.type == "fold"):
            counts = flow_lost, None if euler is None else euler_lost
            return Classification(point.outcome, point, *counts)
    counts = flow_lost, None if euler is None else euler_lost
    if not reached:
        return Classification("fold", fold, *counts)
    guilty = blamed if flow_lost > 0 else blamed_euler if euler_lost > 0 else None
    return Classification("global or basin" if guilty is None else guilty.outcome, guilty, *counts)
